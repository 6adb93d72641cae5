"""A Program as machine code: LLVM IR, compiled in the process, and threads that share the work."""
