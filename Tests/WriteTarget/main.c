// A process to be entered: it has memory of both kinds, writes to it all the time, and notices when one of its threads
// comes back from a system call that it did not make.
//
//   write-target BYTES [filtered]      control socket: descriptor 3; filtered: may not call userfaultfd(2)
//
//   thread     does
//   main       answers commands
//   sleeper    sleeps in futex(2); a result that futex cannot give ends the program
//   writers    write random words of random pages, holes included
//   signaller  on demand: real-time signals to the sleeper, each of which must be handled once
//
//   command    answer (words of 64 bits)
//   i          address of the shared memory, of the anonymous memory, descriptor of the shared one
//   p, g       1; the writers stand still, go on
//   w OFFSET   1; one word written at this offset of both
//   r OFFSET   1; one word read at this offset of the shared memory
//   d OFFSET   1; the page at this offset of both is given back to the kernel
//   s          1; signals begin
//   S          signals sent, signals handled; signals end
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { CONTROL = 3, WRITERS = 2, PAGE = 4096, BURST = 64 };

static uint8_t *shared, *anonymous;
static uint64_t bytes;
static int memory_file;
static atomic_int standing, signalling;
static atomic_ulong sent, handled;
static pthread_mutex_t writing[WRITERS] = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER};
static pthread_t sleeper_thread;
static int bed;

static void nap(long ns) {
    struct timespec t = {.tv_nsec = ns};
    nanosleep(&t, NULL);
}

static void on_signal(int number) {
    (void)number;
    atomic_fetch_add(&handled, 1);
}

static void *sleeper(void *unused) {
    (void)unused;
    for (;;) {
        errno = 0;
        long result = syscall(SYS_futex, &bed, FUTEX_WAIT, 0, NULL, NULL, 0);
        // As strict as QEMU is about its own futexes.
        if (result != 0 && !(result == -1 && (errno == EINTR || errno == EAGAIN))) abort();
    }
}

static void *writer(void *argument) {
    int number = (int)(intptr_t)argument;
    uint64_t state = 88172645463325252ull + (uint64_t)number;
    for (;;) {
        if (atomic_load(&standing)) {
            nap(100000);
            continue;
        }
        pthread_mutex_lock(&writing[number]);
        for (int i = 0; i < BURST && !atomic_load(&standing); i++) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            // Writers own every other word, so that no write is lost to the other writer.
            uint64_t at = state % (bytes / 16) * 16 + (uint64_t)number * 8;
            *(volatile uint64_t *)((state >> 60 & 1 ? shared : anonymous) + at) = state;
        }
        pthread_mutex_unlock(&writing[number]);
        nap(20000);
    }
}

static void *signaller(void *unused) {
    (void)unused;
    for (;;) {
        if (atomic_load(&signalling) == 1 && pthread_kill(sleeper_thread, SIGRTMIN) == 0) atomic_fetch_add(&sent, 1);
        else if (atomic_load(&signalling) == 2) atomic_store(&signalling, 0);
        nap(50000);
    }
}

static void answer(const uint64_t *words, size_t count) {
    if (write(CONTROL, words, count * 8) != (ssize_t)(count * 8)) exit(1);
}

static uint64_t offset(void) {
    uint64_t at;
    if (read(CONTROL, &at, sizeof at) != sizeof at || at > bytes - 8) exit(1);
    return at;
}

static int filter(void) {
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof rules / sizeof *rules, .filter = rules};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0;
}

int main(int count, char **words) {
    if (count < 2 || (count > 2 && filter() != 0)) return 2;
    bytes = strtoull(words[1], NULL, 10);
    memory_file = memfd_create("write-target", MFD_CLOEXEC);
    if (memory_file < 0 || ftruncate(memory_file, (off_t)bytes) < 0) return 1;
    shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory_file, 0);
    anonymous = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || anonymous == MAP_FAILED) return 1;
    // The rest are holes.
    memset(shared, 1, bytes / 2);
    memset(anonymous, 1, bytes / 2);

    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGRTMIN, &action, NULL);
    sigset_t mine;
    sigemptyset(&mine), sigaddset(&mine, SIGRTMIN);
    pthread_create(&sleeper_thread, NULL, sleeper, NULL);
    pthread_sigmask(SIG_BLOCK, &mine, NULL);
    pthread_t thread;
    for (intptr_t i = 0; i < WRITERS; i++) pthread_create(&thread, NULL, writer, (void *)i);
    pthread_create(&thread, NULL, signaller, NULL);

    for (char command; read(CONTROL, &command, 1) == 1;) {
        uint64_t done = 1;
        switch (command) {
            case 'i': answer((uint64_t[]){(uintptr_t)shared, (uintptr_t)anonymous, (uint64_t)memory_file}, 3); break;
            case 'p':
                atomic_store(&standing, 1);
                for (int i = 0; i < WRITERS; i++) {
                    pthread_mutex_lock(&writing[i]);
                    pthread_mutex_unlock(&writing[i]);
                }
                answer(&done, 1);
                break;
            case 'g': atomic_store(&standing, 0), answer(&done, 1); break;
            case 'w': {
                uint64_t at = offset();
                *(volatile uint64_t *)(shared + at) = *(volatile uint64_t *)(anonymous + at) = at + 1;
                answer(&done, 1);
                break;
            }
            case 'r': (void)*(volatile uint64_t *)(shared + offset()), answer(&done, 1); break;
            case 'd': {
                uint64_t at = offset() / PAGE * PAGE;
                if (fallocate(memory_file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, PAGE) < 0) return 1;
                if (madvise(anonymous + at, PAGE, MADV_DONTNEED) < 0) return 1;
                answer(&done, 1);
                break;
            }
            case 's': atomic_store(&signalling, 1), answer(&done, 1); break;
            case 'S':
                atomic_store(&signalling, 2);
                while (atomic_load(&signalling)) nap(100000);
                // What was sent last is still to be handled.
                for (int turn = 0; turn < 10000 && atomic_load(&handled) != atomic_load(&sent); turn++) nap(100000);
                answer((uint64_t[]){atomic_load(&sent), atomic_load(&handled)}, 2);
                break;
            default: return 1;
        }
    }
    return 0;
}
