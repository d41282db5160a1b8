// What the prover's files share.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// One line on the serial console; `die` adds errno's text and ends the guest.
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void die(const char *what) __attribute__((noreturn));

// redis-server in this guest. Requests are queued and sent together; their answers are taken in the same order, each by
// the function that fits its request. An answer of another kind ends the guest.
void redis_start(void);
void redis_set(uint64_t key, const void *value, size_t bytes);  // answered by redis_stored
void redis_get(uint64_t key);                                   // answered by redis_value
void redis_send(void);
void redis_stored(void);
bool redis_value(void *value, size_t bytes);  // false: the server has no such key

// A disk that is read past the page cache by threads of their own; pages compared, and wrong ones, since the last call.
void direct_start(const char *path);
uint64_t direct_take_checked(void);
uint64_t direct_take_wrong(void);
