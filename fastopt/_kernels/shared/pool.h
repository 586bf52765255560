/* A pool of threads whose caller never waits for a thread that has not come.

   A job is a function and a number of chunks, cut into one range per seat. The caller takes seat 0
   and works; a worker that comes takes a seat, works through that seat's range, then helps with the
   others. The caller waits only for chunks that a worker has begun, so a worker that the system has
   not yet given a core costs nothing. Worker k prefers seat k: in a loop of calls the same thread
   finds the same data in its cache.

   One mutex guards everything but the counters of chunks. Workers spin for a moment after a job,
   then sleep; they are detached, block all signals and hold nothing at exit. After a fork the child
   starts with an empty pool. */
#ifndef FASTOPT_POOL_H
#define FASTOPT_POOL_H

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
typedef SRWLOCK fo_mutex;
typedef CONDITION_VARIABLE fo_condition;
#define FO_MUTEX SRWLOCK_INIT
#define FO_CONDITION CONDITION_VARIABLE_INIT
#define fo_lock AcquireSRWLockExclusive
#define fo_unlock ReleaseSRWLockExclusive
#define fo_sleep(condition, mutex) SleepConditionVariableSRW(condition, mutex, INFINITE, 0)
#define fo_wake WakeConditionVariable
#define fo_wake_all WakeAllConditionVariable
static double fo_now(void) {
    LARGE_INTEGER count, rate;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&rate);
    return (double) count.QuadPart / (double) rate.QuadPart;
}
static int fo_cpus(void) {
    DWORD_PTR own, all;
    int n = 0;
    if (!GetProcessAffinityMask(GetCurrentProcess(), &own, &all)) return 1;
    for (; own; own &= own - 1) n++;
    return n ? n : 1;
}
#else
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>
typedef pthread_mutex_t fo_mutex;
typedef pthread_cond_t fo_condition;
#define FO_MUTEX PTHREAD_MUTEX_INITIALIZER
#define FO_CONDITION PTHREAD_COND_INITIALIZER
#define fo_lock pthread_mutex_lock
#define fo_unlock pthread_mutex_unlock
#define fo_sleep pthread_cond_wait
#define fo_wake pthread_cond_signal
#define fo_wake_all pthread_cond_broadcast
static double fo_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double) t.tv_sec + 1e-9 * (double) t.tv_nsec;
}
/* Processors that this thread may run on. */
static int fo_cpus(void) {
#if defined(__linux__) && defined(CPU_COUNT)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int) n : 1;
}
#endif

#if defined(__x86_64__)
#define fo_pause() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define fo_pause() __asm__ volatile("yield")
#else
#define fo_pause() ((void) 0)
#endif

enum { FO_MOST = 256 }; /* threads of one job, the caller among them */
static const double FO_SPIN = 20e-6; /* seconds awake for the next job or for a last chunk */
static const double FO_POLL = 50e-3; /* seconds between two looks at the signals */
static const double FO_REFUSED = 1.0; /* seconds until a refused thread is asked for again */

typedef void (*fo_chunk)(void *context, ptrdiff_t index, int worker);
typedef int (*fo_poll)(void);

typedef struct {
    _Alignas(64) atomic_ptrdiff_t next; /* on its own cache line */
    ptrdiff_t end;
    int taken;
} fo_seat;

typedef struct fo_job {
    fo_chunk chunk;
    void *context;
    struct fo_job *older;
    int seats, asleep;   /* asleep: the caller sleeps until nobody is inside */
    atomic_int inside;   /* workers at work on it */
    atomic_int paused;   /* nobody begins a chunk */
    fo_seat seat[FO_MOST];
} fo_job;

typedef struct {
    _Alignas(64) atomic_uint calls; /* changes when there may be work */
    int busy, asleep;               /* busy: called or at work */
    fo_condition called;
} fo_worker;

static struct {
    fo_mutex mutex;
    fo_condition left; /* a job that its caller sleeps for has nobody inside */
    fo_job *jobs;      /* newest first */
    int workers;       /* numbers 1 .. workers */
    double refused;
    fo_worker worker[FO_MOST];
} fo_pool = {FO_MUTEX, FO_CONDITION, NULL, 0, 0.0, {{0}}};

static _Thread_local int fo_working; /* a call from inside a chunk runs on its own thread */

/* Chunks for ``seat`` until none is left: its own, then the others'. With ``due``, a time, pauses
   the job when that has come. */
static void fo_take(fo_job *job, int seat, double due) {
    for (int k = 0; k < job->seats; k++) {
        fo_seat *from = &job->seat[(seat + k) % job->seats];
        while (!atomic_load_explicit(&job->paused, memory_order_relaxed)) {
            ptrdiff_t index = atomic_fetch_add_explicit(&from->next, 1, memory_order_relaxed);
            if (index >= from->end) break;
            job->chunk(job->context, index, seat);
            if (due != 0.0 && fo_now() >= due)
                atomic_store_explicit(&job->paused, 1, memory_order_relaxed);
        }
    }
}

/* A seat for worker ``k``: its own, or one whose own worker is busy elsewhere. Under the mutex. */
static fo_job *fo_find(int k, int *seat) {
    for (fo_job *job = fo_pool.jobs; job; job = job->older) {
        int s = k;
        if (k >= job->seats || job->seat[k].taken)
            for (s = 1; s < job->seats; s++)
                if (!job->seat[s].taken && (s > fo_pool.workers || fo_pool.worker[s].busy)) break;
        if (s < job->seats) {
            *seat = s;
            return job;
        }
    }
    return NULL;
}

static void fo_serve(int k) {
    fo_worker *own = &fo_pool.worker[k];
    int seat;
    fo_working = 1;
    fo_lock(&fo_pool.mutex);
    for (;;) {
        fo_job *job = fo_find(k, &seat);
        if (job) {
            own->busy = job->seat[seat].taken = 1;
            atomic_fetch_add_explicit(&job->inside, 1, memory_order_relaxed);
            fo_unlock(&fo_pool.mutex);
            fo_take(job, seat, 0.0);
            fo_lock(&fo_pool.mutex);
            int wake = job->asleep; /* once nobody is inside, the job may be gone */
            if (atomic_fetch_sub_explicit(&job->inside, 1, memory_order_release) == 1 && wake)
                fo_wake_all(&fo_pool.left);
            continue;
        }
        own->busy = 0;
        unsigned seen = atomic_load_explicit(&own->calls, memory_order_relaxed);
        fo_unlock(&fo_pool.mutex);
        double end = fo_now() + FO_SPIN;
        do
            for (int i = 0; i < 16; i++) fo_pause();
        while (atomic_load_explicit(&own->calls, memory_order_relaxed) == seen && fo_now() < end);
        fo_lock(&fo_pool.mutex);
        while (atomic_load_explicit(&own->calls, memory_order_relaxed) == seen) {
            own->asleep = 1;
            fo_sleep(&own->called, &fo_pool.mutex);
            own->asleep = 0;
        }
    }
}

#ifdef _WIN32
static DWORD WINAPI fo_begin(void *number) {
    fo_serve((int) (ptrdiff_t) number);
    return 0;
}

static int fo_start(int k) {
    HANDLE thread = CreateThread(NULL, 0, fo_begin, (void *) (ptrdiff_t) k, 0, NULL);
    if (thread == NULL) return 0;
    CloseHandle(thread);
    return 1;
}
#else
static void *fo_begin(void *number) {
#ifdef __linux__
    extern int pthread_setname_np(pthread_t, const char *);
    pthread_setname_np(pthread_self(), "fastopt");
#endif
    fo_serve((int) (ptrdiff_t) number);
    return NULL;
}

static int fo_start(int k) {
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t all, before;
    int failed;
    if (pthread_attr_init(&attributes)) return 0;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 2 << 20);
    sigfillset(&all); /* signals are for the threads that know what to do with them */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    failed = pthread_create(&thread, &attributes, fo_begin, (void *) (ptrdiff_t) k);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return !failed;
}

/* In a forked child: the other threads are gone, and with them their jobs. */
static void fo_forget(void) {
    static const fo_mutex mutex = FO_MUTEX;
    static const fo_condition condition = FO_CONDITION;
    memcpy(&fo_pool.mutex, &mutex, sizeof mutex);
    memcpy(&fo_pool.left, &condition, sizeof condition);
    fo_pool.jobs = NULL;
    fo_pool.workers = 0;
    fo_pool.refused = 0.0;
}
#endif

/* Called once, when the module is imported. */
static int fo_prepare(void) {
#ifdef _WIN32
    return 0;
#else
    return pthread_atfork(NULL, NULL, fo_forget);
#endif
}

/* One worker more; 0 where the system refuses. Under the mutex. */
static int fo_hire(void) {
    static const fo_condition condition = FO_CONDITION;
    fo_worker *one = &fo_pool.worker[fo_pool.workers + 1];
    if (fo_pool.workers == FO_MOST - 1) return 0;
    if (fo_pool.refused != 0.0 && fo_now() < fo_pool.refused) return 0;
    memcpy(&one->called, &condition, sizeof condition);
    one->busy = one->asleep = 0;
    if (!fo_start(fo_pool.workers + 1)) {
        fo_pool.refused = fo_now() + FO_REFUSED;
        return 0;
    }
    fo_pool.workers++;
    return 1;
}

/* Open the job and call a worker for each seat: its own, else an idle one. */
static void fo_open(fo_job *job) {
    short wake[FO_MOST];
    int n = 0, spare = job->seats, cpus = 0;
    fo_lock(&fo_pool.mutex);
    job->older = fo_pool.jobs;
    fo_pool.jobs = job;
    while (fo_pool.workers < job->seats - 1 && fo_hire()) {}
    for (int s = 1; s < job->seats; s++) {
        int k = s;
        job->seat[s].taken = 0;
        if (s > fo_pool.workers || fo_pool.worker[s].busy) {
            while (spare <= fo_pool.workers && fo_pool.worker[spare].busy) spare++;
            if (spare > fo_pool.workers) { /* other callers have them all: up to a core each */
                if (cpus == 0) cpus = fo_cpus();
                if (fo_pool.workers >= cpus - 1 || !fo_hire()) continue;
                spare = fo_pool.workers;
            }
            k = spare;
        }
        fo_worker *one = &fo_pool.worker[k];
        one->busy = 1;
        atomic_fetch_add_explicit(&one->calls, 1, memory_order_relaxed);
        if (one->asleep) wake[n++] = (short) k;
    }
    fo_unlock(&fo_pool.mutex);
    while (n) fo_wake(&fo_pool.worker[wake[--n]].called);
}

/* Close the job to workers who have not come, and wait for those who have. */
static void fo_close(fo_job *job) {
    fo_job **at = &fo_pool.jobs;
    fo_lock(&fo_pool.mutex);
    while (*at != job) at = &(*at)->older;
    *at = job->older;
    fo_unlock(&fo_pool.mutex);
    if (atomic_load_explicit(&job->inside, memory_order_acquire) == 0) return;
    double end = fo_now() + FO_SPIN;
    do {
        for (int i = 0; i < 8; i++) fo_pause();
        if (atomic_load_explicit(&job->inside, memory_order_acquire) == 0) return;
    } while (fo_now() < end);
    fo_lock(&fo_pool.mutex);
    job->asleep = 1;
    while (atomic_load_explicit(&job->inside, memory_order_acquire) != 0)
        fo_sleep(&fo_pool.left, &fo_pool.mutex);
    fo_unlock(&fo_pool.mutex);
}

/* chunk(context, i, worker) for each i < n, on up to ``threads`` threads; worker < threads is the
   number of the thread within this call. With ``poll``, that is called about every FO_POLL seconds
   while no chunk is at work; where it returns other than 0, the rest is left out and -1 returned. */
static int fo_run(fo_chunk chunk, void *context, ptrdiff_t n, int threads, fo_poll poll) {
    if (fo_working) poll = NULL;
    double due = poll ? fo_now() + FO_POLL : 0.0;
    if (threads > FO_MOST) threads = FO_MOST;
    if (threads > n) threads = (int) n;
    if (threads <= 1 || fo_working) {
        for (ptrdiff_t i = 0; i < n; i++) {
            if (poll && i && fo_now() >= due) {
                if (poll()) return -1;
                due = fo_now() + FO_POLL;
            }
            chunk(context, i, 0);
        }
        return 0;
    }
    fo_job job;
    job.chunk = chunk;
    job.context = context;
    job.seats = threads;
    atomic_init(&job.inside, 0);
    for (int s = 0; s < threads; s++) {
        atomic_init(&job.seat[s].next, n / threads * s + n % threads * s / threads);
        job.seat[s].end = n / threads * (s + 1) + n % threads * (s + 1) / threads;
    }
    for (;;) {
        job.asleep = 0;
        atomic_init(&job.paused, 0);
        fo_open(&job);
        fo_working = 1;
        fo_take(&job, 0, due);
        fo_working = 0;
        fo_close(&job);
        if (!atomic_load_explicit(&job.paused, memory_order_relaxed)) return 0;
        if (poll()) return -1;
        due = fo_now() + FO_POLL;
    }
}

#endif
