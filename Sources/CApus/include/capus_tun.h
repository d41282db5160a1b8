// TUN interfaces: what tuntap's ioctls and setns(2) need, which Swift cannot call.
#pragma once

#include <stddef.h>
#include <stdint.h>

// Moves the calling thread into the network namespace behind `space` for good, and makes the TUN interface `name` there:
// whole segments (TSO), a virtio_net_hdr of 10 bytes in front of each. Descriptor (non-blocking, close-on-exec) or -errno.
int capus_tun_open(const char *space, const char *name);
// Waits until there is something to read: 1, 0 when the time is over, or -errno.
int capus_wait_readable(int fd, int64_t ns);
