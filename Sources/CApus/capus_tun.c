#define _GNU_SOURCE
#include "capus_tun.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static int enter(const char *space) {
    int fd = open(space, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    int result = setns(fd, CLONE_NEWNET) ? -errno : 0;
    close(fd);
    return result;
}

int capus_tun_open(const char *space, const char *name) {
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    if (strlen(name) >= sizeof request.ifr_name) return -ENAMETOOLONG;
    strcpy(request.ifr_name, name);
    int entered = enter(space);
    if (entered < 0) return entered;
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return -errno;
    if (ioctl(fd, TUNSETIFF, &request) < 0 || ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) < 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

int capus_wait_readable(int fd, int64_t ns) {
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    struct timespec limit = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    int count = ppoll(&entry, 1, &limit, NULL);
    return count < 0 ? (errno == EINTR ? 0 : -errno) : count;
}
