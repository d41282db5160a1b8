// Enters a thread again and again, for ever: something to be killed in the middle of it.
//
//   restless-tracer THREAD CALL LEAVE      an id; the two gadgets, hexadecimal
#include <capus_fault.h>
#include <capus_trace.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

static uint64_t soon(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)(now.tv_sec + 10) * 1000000000u;
}

int main(int count, char **words) {
    if (count != 4) return 2;
    struct capus_gadgets gadgets = {strtoull(words[2], NULL, 16), strtoull(words[3], NULL, 16)};
    for (;;) {
        struct capus_thread thread = {.id = atoi(words[1])};
        if (capus_thread_seize(&thread, 0) != 0) return 1;
        if (capus_thread_stop(&thread, soon()) != 0) return 1;
        if (capus_thread_borrow(&thread, &gadgets) == 0) {
            struct capus_call open = {.number = capus_fault_number(), .arguments = {capus_fault_flags()}};
            struct capus_call close = {.number = CAPUS_CALL_CLOSE};
            if (capus_thread_call(&thread, &gadgets, &open, soon()) != 0) return 1;
            close.arguments[0] = (uint64_t)open.result;
            if (open.result >= 0 && capus_thread_call(&thread, &gadgets, &close, soon()) != 0) return 1;
        }
        if (capus_thread_release(&thread, soon()) != 0) return 1;
    }
}
