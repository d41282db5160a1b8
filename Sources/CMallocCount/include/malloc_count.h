#pragma once
#include <stdint.h>

// Calls of malloc, calloc, realloc and posix_memalign by the whole process since its start. Linking this target replaces
// the C library's entry points by counting ones; only the laboratory does.
uint64_t malloc_count(void);
