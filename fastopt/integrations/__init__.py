"""Row 6: fastopt under the interfaces of other packages; each module imports its own."""
