RULES: object  # a capsule for update.pyx
