// System calls made by a thread of another process, through ptrace(2). x86-64 only.
//
// A tracer is a thread, not a process: all calls about one traced thread come from one and the same thread, and when
// that thread ends, the kernel lets go of everything it still holds.
#pragma once

#include <stddef.h>
#include <stdint.h>

// A traced thread; `found` are its registers as it was stopped.
struct capus_thread {
    int32_t id;
    int32_t calls;
    uint64_t found[27];
    uint64_t signals_blocked;
    uint64_t frame;
    // Once borrowed: where the process can read CAPUS_MEMORY_NAME.
    uint64_t name;
};

// What a memory file made inside another process is called.
#define CAPUS_MEMORY_NAME "apus-ram"

// Two pieces of code that any program with a C library holds:
//   call   syscall; ret
//   leave  mov $15, %rax; syscall      (rt_sigreturn, where signal handlers return to)
struct capus_gadgets {
    uint64_t call;
    uint64_t leave;
};

// Numbers of system calls, and a flag of one, which Swift has no header for.
enum {
    CAPUS_CALL_CLOSE = 3,
    CAPUS_CALL_MMAP = 9,
    CAPUS_CALL_MADVISE = 28,
    CAPUS_CALL_FUTEX = 202,
    CAPUS_CALL_MEMFD_CREATE = 319,
    CAPUS_MEMFD_CLOEXEC = 1,
};

struct capus_call {
    int64_t number;
    uint64_t arguments[6];
    int64_t result;
};

// Attaches and asks for a stop, without waiting. `past_seccomp`: calls made for us are not filtered (needs
// CAP_SYS_ADMIN). 0 or errno.
int capus_thread_seize(struct capus_thread *thread, int past_seccomp);
// Waits until it has stopped: 0, ESRCH when it has ended, ETIMEDOUT. Signals that come first are delivered.
int capus_thread_stop(struct capus_thread *thread, uint64_t deadline_ns);
// Makes a stopped thread ready to call: 0, or EBUSY when it does not sleep in futex(2).
int capus_thread_borrow(struct capus_thread *thread, const struct capus_gadgets *gadgets);
// One system call, made by the thread: 0 with its result (or -errno) in `call`, or errno of the tracing.
int capus_thread_call(struct capus_thread *thread, const struct capus_gadgets *gadgets, struct capus_call *call,
                      uint64_t deadline_ns);
// Lets it go on as it was found, a signal that has come meanwhile first. 0 or errno: ESRCH when it has ended, or is not
// stopped.
int capus_thread_release(const struct capus_thread *thread, uint64_t deadline_ns);

// pidfd_getfd(2): a copy of another process's descriptor, or -errno.
int capus_pidfd_getfd(int pidfd, int fd);
