#define _GNU_SOURCE
#include "capus_trace.h"

#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

int capus_pidfd_getfd(int pidfd, int fd) {
    long copy = syscall(SYS_pidfd_getfd, pidfd, fd, 0);
    return copy < 0 ? -errno : (int)copy;
}

#if defined(__x86_64__)

_Static_assert(sizeof(struct user_regs_struct) == sizeof(((struct capus_thread *)0)->found), "x86-64 registers");

_Static_assert(CAPUS_CALL_CLOSE == SYS_close && CAPUS_CALL_MMAP == SYS_mmap && CAPUS_CALL_MADVISE == SYS_madvise &&
                   CAPUS_CALL_FUTEX == SYS_futex && CAPUS_CALL_MEMFD_CREATE == SYS_memfd_create &&
                   CAPUS_MEMFD_CLOEXEC == MFD_CLOEXEC,
               "x86-64 system calls");

// Turns of waiting with the CPU held, about a millisecond, before the waiting sleeps.
#define TURNS_AWAKE 2000
// Below the stack pointer the ABI keeps 128 bytes for the function that runs.
#define RED_ZONE 128
// How the kernel marks, in rax, a call that it will make again by itself (include/linux/errno.h).
#define ERESTARTSYS 512
#define ERESTARTNOINTR 513
#define ERESTARTNOHAND 514
#define ERESTART_RESTARTBLOCK 516

// What lies on the stack of a thread that calls for us; rsp points to it.
//
//   rsp ->  leave        where the `ret` of the call gadget goes
//           ucontext     what rt_sigreturn then loads: every register and the signal mask, as they are at home
//           name         for memfd_create
//
// While we live the thread never gets that far: it is stopped when its call returns, and set back from here.
// When we are killed in the middle, the kernel detaches and the thread runs on from where it is: it finishes the
// call, returns into rt_sigreturn and is home, in its futex, without a trace but what the call left (a journal tells
// the successor of that). Without the frame it would go on behind its own futex call with a descriptor number as the
// result; QEMU aborts on such.
//
// Two things are not restored on this path: x87 and SSE state, which no caller of futex(2) keeps anything in, and a
// restart block: a futex with a timeout returns EINTR. Single steps would do instead of system call stops, but the trap
// flag survives the tracer's death and kills the process.
struct frame {
    uint64_t leave;
    ucontext_t home;
    char name[sizeof CAPUS_MEMORY_NAME];
};

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int trace(int request, int32_t id, uint64_t address, const void *data) {
    return ptrace(request, id, address, data) < 0 ? errno : 0;
}

static int wait_for_stop(int32_t id, uint64_t deadline_ns, int *status) {
    for (unsigned turn = 0;; turn++) {
        pid_t found = waitpid(id, status, __WALL | WNOHANG);
        if (found == id) return WIFSTOPPED(*status) ? 0 : ESRCH;
        if (found < 0 && errno != EINTR) return errno == ECHILD ? ESRCH : errno;
        if (now_ns() > deadline_ns) return ETIMEDOUT;
        struct timespec nap = {.tv_nsec = 50000};
        if (turn < TURNS_AWAKE) sched_yield();
        else nanosleep(&nap, NULL);
    }
}

int capus_thread_seize(struct capus_thread *thread, int past_seccomp) {
    uint64_t options = PTRACE_O_TRACESYSGOOD;
    int error = EPERM;
    if (past_seccomp) error = trace(PTRACE_SEIZE, thread->id, 0, (void *)(options | PTRACE_O_SUSPEND_SECCOMP));
    // A kernel without checkpoint/restore, or no CAP_SYS_ADMIN: then the filter decides.
    if (!past_seccomp || error == EPERM || error == EINVAL)
        error = trace(PTRACE_SEIZE, thread->id, 0, (void *)options);
    return error ? error : trace(PTRACE_INTERRUPT, thread->id, 0, NULL);
}

// Waits until nothing of the thread runs and its next step is back to user mode, or a signal.
static int wait_until_quiet(int32_t id, uint64_t deadline_ns) {
    for (;;) {
        int status = 0;
        int error = wait_for_stop(id, deadline_ns, &status);
        // The stop asked for, or that of a process stopped by a signal: both are of this kind.
        if (error || status >> 16 == PTRACE_EVENT_STOP) return error;
        // A signal was on its way to the thread. It goes on to it; the stop is still due.
        error = trace(PTRACE_CONT, id, 0, (void *)(uintptr_t)WSTOPSIG(status));
        if (error) return error;
    }
}

int capus_thread_stop(struct capus_thread *thread, uint64_t deadline_ns) {
    int error = wait_until_quiet(thread->id, deadline_ns);
    if (!error) error = trace(PTRACE_GETREGS, thread->id, 0, thread->found);
    return error ? error : trace(PTRACE_GETSIGMASK, thread->id, sizeof thread->signals_blocked, &thread->signals_blocked);
}

// The registers with which the thread makes its own call again: what the kernel does with those it finds in a call that
// a stop has interrupted (arch/x86/kernel/signal.c). False: it is in no such call.
static bool registers_at_home(const struct capus_thread *thread, struct user_regs_struct *home) {
    memcpy(home, thread->found, sizeof *home);
    if (home->orig_rax != SYS_futex) return false;
    switch (-(int64_t)home->rax) {
        case ERESTARTSYS:
        case ERESTARTNOINTR:
        case ERESTARTNOHAND: home->rax = home->orig_rax; break;
        case ERESTART_RESTARTBLOCK: home->rax = SYS_restart_syscall; break;
        default: return false;
    }
    home->rip -= 2;
    return true;
}

int capus_thread_borrow(struct capus_thread *thread, const struct capus_gadgets *gadgets) {
    struct user_regs_struct home;
    if (!registers_at_home(thread, &home)) return EBUSY;
    struct frame frame;
    memset(&frame, 0, sizeof frame);
    frame.leave = gadgets->leave;
    // An invalid flag: sigreturn leaves the thread's alternate stack as it is.
    frame.home.uc_stack.ss_flags = 0x7fff;
    memcpy(&frame.home.uc_sigmask, &thread->signals_blocked, sizeof thread->signals_blocked);
    frame.home.uc_flags = 2 | 4;  // UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS: ss as given
    greg_t *g = frame.home.uc_mcontext.gregs;
    g[REG_R8] = home.r8, g[REG_R9] = home.r9, g[REG_R10] = home.r10, g[REG_R11] = home.r11;
    g[REG_R12] = home.r12, g[REG_R13] = home.r13, g[REG_R14] = home.r14, g[REG_R15] = home.r15;
    g[REG_RDI] = home.rdi, g[REG_RSI] = home.rsi, g[REG_RBP] = home.rbp, g[REG_RBX] = home.rbx;
    g[REG_RDX] = home.rdx, g[REG_RAX] = home.rax, g[REG_RCX] = home.rcx, g[REG_RSP] = home.rsp;
    g[REG_RIP] = home.rip, g[REG_EFL] = home.eflags;
    g[REG_CSGSFS] = (greg_t)(home.cs | home.gs << 16 | home.fs << 32 | home.ss << 48);

    memcpy(frame.name, CAPUS_MEMORY_NAME, sizeof frame.name);

    thread->frame = (home.rsp - RED_ZONE - sizeof frame) & ~15ull;
    thread->name = thread->frame + offsetof(struct frame, name);
    struct iovec mine = {&frame, sizeof frame}, theirs = {(void *)thread->frame, sizeof frame};
    ssize_t written = process_vm_writev(thread->id, &mine, 1, &theirs, 1, 0);
    return written == sizeof frame ? 0 : written < 0 ? errno : EFAULT;
}

int capus_thread_call(struct capus_thread *thread, const struct capus_gadgets *gadgets, struct capus_call *call,
                      uint64_t deadline_ns) {
    struct user_regs_struct registers;
    memcpy(&registers, thread->found, sizeof registers);
    registers.rip = gadgets->call;
    registers.rsp = thread->frame;
    // In no call of its own: the kernel is not to make that one again.
    registers.orig_rax = (uint64_t)-1;
    registers.rax = (uint64_t)call->number;
    registers.rdi = call->arguments[0], registers.rsi = call->arguments[1], registers.rdx = call->arguments[2];
    registers.r10 = call->arguments[3], registers.r8 = call->arguments[4], registers.r9 = call->arguments[5];
    int error = trace(PTRACE_SETREGS, thread->id, 0, &registers);
    // No signal handler runs in between: signals wait in the kernel until the mask is as it was. Set after the
    // registers, so that the frame restores it when we are killed.
    uint64_t all = ~0ull;
    if (!error) error = trace(PTRACE_SETSIGMASK, thread->id, sizeof all, &all);
    if (error) return error;
    thread->calls++;

    uint64_t signal = 0;
    for (int call_stops = 0; call_stops < 2;) {
        int status = 0;
        error = trace(PTRACE_SYSCALL, thread->id, 0, (void *)signal);
        if (!error) error = wait_for_stop(thread->id, deadline_ns, &status);
        if (error) return error;
        signal = 0;
        if (status >> 8 == (SIGTRAP | 0x80)) call_stops++;
        // SIGSTOP, the only signal that cannot be blocked and is not death, stops the thread when it is let go.
        else if (status >> 16 == 0) signal = (uint64_t)WSTOPSIG(status);
    }
    error = trace(PTRACE_GETREGS, thread->id, 0, &registers);
    call->result = (int64_t)registers.rax;
    return error;
}

int capus_thread_release(const struct capus_thread *thread, uint64_t deadline_ns) {
    int32_t id = thread->id;
    if (thread->calls) {
        // From the end of our call to the stop in which it was found: only from there does the kernel make the thread's
        // own call again, or end it with EINTR for a signal. Killed before, it gets home by its frame.
        int error = trace(PTRACE_INTERRUPT, id, 0, NULL);
        if (!error) error = trace(PTRACE_CONT, id, 0, NULL);
        if (!error) error = wait_until_quiet(id, deadline_ns);
        if (!error) error = trace(PTRACE_SETSIGMASK, id, sizeof thread->signals_blocked, &thread->signals_blocked);
        if (!error) error = trace(PTRACE_SETREGS, id, 0, thread->found);
        if (error) return error;
    }
    return trace(PTRACE_DETACH, id, 0, NULL);
}

#else

int capus_thread_seize(struct capus_thread *thread, int past_seccomp) { return ENOSYS; }
int capus_thread_stop(struct capus_thread *thread, uint64_t deadline_ns) { return ENOSYS; }
int capus_thread_borrow(struct capus_thread *thread, const struct capus_gadgets *gadgets) { return ENOSYS; }
int capus_thread_call(struct capus_thread *thread, const struct capus_gadgets *gadgets, struct capus_call *call,
                      uint64_t deadline_ns) {
    return ENOSYS;
}
int capus_thread_release(const struct capus_thread *thread, uint64_t deadline_ns) { return ENOSYS; }

#endif
