// A guest program that proves its own memory.
//
// It owns a region of pages. What a page holds is a known function of (page number, version); the versions are kept
// twice, in a table apart and in the page itself. One thread rewrites pages with new versions and, in between and for
// ever, compares every word of every page with the function. A page that was lost, torn, delivered twice in the wrong
// order or taken from another page is therefore seen by the guest itself, whoever moved its memory.
//
//   region   page 0 | page 1 | ...                      | page n-1
//            <------- hot: rewritten ------->|<- written once ->
//   page     word 0: number | word 1: version | words 2..511: word_of(number, version, index)
//
// Pattern `few` changes some words of a page, one in each of prove.lines lines of 64 bytes, and keeps no version in it:
// exactly so many lines change. Pattern `redis` has its pages, of prove.value bytes each, in Debian's redis-server in
// the same guest: what is proved there is the memory of a program that knows nothing of all this.
//
// Patterns `scan`, `strided`, `zipf`, `random` and `phases` visit pages in an order: they read some words of each and
// compare them, and rewrite one page in SET_EVERY. `phases` changes its order every PHASE_MS.
//
// Lines on the serial console, each written by one write(2):
//   R pattern=… region=… hot=… rate=… seed=… disk=…         the region is filled; proving begins
//   T <sequence> <monotonic ns> <work so far>               every prove.tick milliseconds, from a thread of its own
//   V <pass> ok|BAD <pages checked> <page writes so far>    every page has been compared once more
//   BAD page=… word=… want=… got=… version=… inpage=…       at most MAX_BAD lines a pass
// Work is page writes, or visits; with `redis` it is answered requests, one in SET_EVERY of them a write.
//
// Parameters come from the kernel command line; see parameters() for names and defaults.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <linux/fs.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "prover.h"

enum { PAGE = 4096, WORDS = PAGE / 8, LINE_WORDS = 8, MAX_BAD = 16, VOCABULARY = 64 };
enum { BURST = 32, CHECK_SLICE = 16, SET_EVERY = 10 };  // done at once: writes, and checks, never more; redis: reads and writes
#define MS 1000000ull

enum { STRIDE = 8, PHASE_MS = 400, VISITED_WORDS = 8 };
enum pattern { INCOMPRESSIBLE, COMPRESSIBLE, FEW, READMOSTLY, IDLE, REDIS, SCAN, STRIDED, ZIPF, RANDOM, PHASES };
static const char *const pattern_names[] = {"incompressible", "compressible", "few", "readmostly", "idle", "redis",
                                            "scan", "strided", "zipf", "random", "phases"};

static struct {
    enum pattern pattern;
    uint64_t region, hot;  // bytes
    uint64_t rate;         // page writes (redis: requests) per second, 0: as fast as it can
    uint64_t seed;
    uint64_t tick_ms;
    uint64_t lines;        // `few`: 64-byte lines in which a write changes one word
    uint64_t share;        // per cent of the CPU that checking may take; 0: what suits the pattern
    uint64_t zero;         // per mille of the versions that are an all-zero page
    uint64_t value;        // `redis`: bytes of a page, that is of a value
    char disk[128];        // block device read into the page cache and proved with the rest
    char direct[128];      // block device read past the page cache, all the time
} prove;

static uint64_t (*pages)[WORDS];
static uint32_t *version_of;  // page -> version
static uint64_t page_count, hot_count;
static unsigned page_words = WORDS;  // `redis`: of a value
static const uint8_t *disk;
static uint64_t *disk_hash;  // page of the disk -> hash at first reading
static uint64_t disk_pages;
static uint64_t writes;
static uint64_t work_done;  // written by the main thread, read by the ticker
static uint64_t vocabulary[VOCABULARY];
static int console;
static pthread_mutex_t console_lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

void say(const char *format, ...) {
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof line - 1) length = sizeof line - 1;
    pthread_mutex_lock(&console_lock);
    for (int done = 0; done < length;) {
        ssize_t n = write(console, line + done, (size_t)(length - done));
        if (n < 0 && errno != EINTR) break;  // nobody can be told
        if (n > 0) done += (int)n;
    }
    pthread_mutex_unlock(&console_lock);
}

void die(const char *what) {
    say("BAD prover: %s: %s\n", what, strerror(errno));
    exit(1);
}

// ---- What a page holds ------------------------------------------------------------------------------------------

static inline uint64_t mix(uint64_t x) {
    x ^= x >> 30, x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27, x *= 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

static inline uint64_t start_of(uint64_t page, uint64_t version) {
    return mix(prove.seed ^ page << 32 ^ version);
}

// One multiplication a word: under TCG this is what bounds the rate at which a guest can write and check.
static inline uint64_t next(uint64_t *state) {
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state ^ *state >> 32;
}

// Pages that become zero and stop being zero are the ones a sender that skips zero pages gets wrong.
static inline bool is_zero(uint64_t page, uint64_t version) {
    return prove.zero && mix(start_of(page, version)) % 1000 < prove.zero;
}

// `few`: write w changes words number c = w*lines .. w*lines+lines-1, where word number c is
// line c % 64, place c / 64 % 8; so all words of the page change in turn, one per line.
enum { FEW_LINES = WORDS / LINE_WORDS, FEW_PERIOD = WORDS };

static inline uint64_t few_index(uint64_t c) { return c % FEW_LINES * LINE_WORDS + c / FEW_LINES % LINE_WORDS; }

static inline uint64_t few_word(uint64_t page, uint64_t c) { return mix(start_of(page, ~0ull) + c); }

// The number c with which word `index` was changed last, or 0 if it holds its first content.
static inline uint64_t few_last(uint64_t index, uint64_t version) {
    uint64_t phase = index % LINE_WORDS * FEW_LINES + index / LINE_WORDS;
    uint64_t end = version * prove.lines + prove.lines - 1;
    if (end < phase) return 0;
    uint64_t c = end - (end - phase) % FEW_PERIOD;
    return c >= prove.lines ? c : 0;
}

// Text-like: words of eight letters from a small vocabulary, every eighth one with digits in it. zstd -1 makes a single
// page 3.4 times and a long run of pages 4.4 times smaller, lz4 2.6 times.
static inline uint64_t text_word(uint64_t random, uint64_t index) {
    uint64_t token = vocabulary[(random & random >> 6) % VOCABULARY];
    return index % 8 == 7 ? token ^ (random >> 40 & 0x0f0f0f) : token;
}

// The whole function, into `out`. The check compares with this, the writer copies it; both use the one definition.
static void content(uint64_t page, uint64_t version, uint64_t *out) {
    if (is_zero(page, version)) {
        memset(out, 0, page_words * sizeof *out);
        return;
    }
    bool few = prove.pattern == FEW;
    uint64_t first = few ? 0 : version, state = start_of(page, first);
    out[0] = page, out[1] = first;
    if (prove.pattern == COMPRESSIBLE || prove.pattern == REDIS) {
        for (uint64_t i = 2; i < page_words; i++) out[i] = text_word(next(&state), i);
    } else {
        for (uint64_t i = 2; i < page_words; i++) out[i] = next(&state);
    }
    if (few) {
        for (uint64_t i = 0; i < WORDS; i++) {
            uint64_t c = few_last(i, version);
            if (c) out[i] = few_word(page, c);
        }
    }
}

// ---- Writing ------------------------------------------------------------------------------------------------------

static void write_page(uint64_t page) {
    uint64_t version = ++version_of[page];
    // `few` touches few words, unless the page is or was zero; the others build the page in place.
    if (prove.pattern == FEW && !is_zero(page, version) && !is_zero(page, version - 1)) {
        for (uint64_t c = version * prove.lines; c < (version + 1) * prove.lines; c++) {
            pages[page][few_index(c)] = few_word(page, c);
        }
    } else {
        content(page, version, pages[page]);
    }
    writes++;
}

static uint64_t random_state;
static uint64_t random_hot_page(void) { return (next(&random_state) >> 16) % hot_count; }

static void work_is_done(uint64_t amount) { __atomic_store_n(&work_done, work_done + amount, __ATOMIC_RELAXED); }

// ---- Checking -----------------------------------------------------------------------------------------------------

static uint64_t pass = 1, checked, cursor, bad_pages;

static void check_words(uint64_t page, uint32_t version, const uint64_t *got) {
    static uint64_t want[WORDS];
    content(page, version, want);
    for (uint64_t i = 0; i < page_words; i++) {
        if (got[i] == want[i]) continue;
        if (bad_pages++ < MAX_BAD) {
            say("BAD page=%llu word=%llu want=%llx got=%llx version=%u inpage=%llu\n", (unsigned long long)page,
                (unsigned long long)i, (unsigned long long)want[i], (unsigned long long)got[i], version,
                (unsigned long long)got[1]);
        }
        return;
    }
}

// ---- Visits ---------------------------------------------------------------------------------------------------------

static bool visits(void) { return prove.pattern >= SCAN; }

// Half of all goes to the first 2 of every 2^16 pages, half of the rest to the next 6 …, as with zipf's exponent of about 1:
// a power of two is chosen evenly, then a page below it. Places are scattered, so that neighbours do not go together.
static uint64_t zipf_page(void) {
    uint64_t bits = 0;
    while (hot_count >> (bits + 1)) bits++;
    uint64_t limit = 1ull << (next(&random_state) >> 20) % (bits + 1);
    return mix((next(&random_state) >> 16) % limit) % hot_count;
}

static uint64_t page_of_visit(uint64_t visit) {
    enum pattern order = prove.pattern;
    static const enum pattern phases[] = {SCAN, RANDOM, STRIDED, ZIPF};
    if (order == PHASES) order = phases[now() / (PHASE_MS * MS) % 4];
    switch (order) {
    case SCAN: return visit % hot_count;
    // Every page once in STRIDE passes.
    case STRIDED: return (visit * STRIDE % hot_count + visit * STRIDE / hot_count % STRIDE) % hot_count;
    case ZIPF: return zipf_page();
    default: return random_hot_page();
    }
}

// A look at the beginning is enough to be there; every word is compared in passes, as always.
static void visit_some(uint64_t count) {
    static uint64_t visit;
    for (uint64_t i = 0; i < count; i++, visit++) {
        uint64_t page = page_of_visit(visit);
        if (visit % SET_EVERY == 0) {
            write_page(page);
        } else {
            unsigned words = page_words;
            page_words = VISITED_WORDS;
            check_words(page, version_of[page], pages[page]);
            page_words = words;
        }
    }
}

// ---- Pages that a server keeps --------------------------------------------------------------------------------------

// Requests of one burst and what their answers must be. They travel together and are answered in order, so a GET after
// a SET of the same page finds the new version.
static struct request {
    uint64_t page;
    uint32_t version;
    bool set;
} burst[BURST];
static unsigned burst_length;

static void ask(uint64_t page, bool set) {
    static uint64_t value[WORDS];
    burst[burst_length++] = (struct request){page, version_of[page], set};
    if (!set) return redis_get(page);
    content(page, version_of[page], value);
    redis_set(page, value, prove.value);
}

static void hear(void) {
    static uint64_t value[WORDS];
    redis_send();
    for (unsigned i = 0; i < burst_length; i++) {
        if (burst[i].set) {
            redis_stored();
        } else if (redis_value(value, prove.value)) {
            check_words(burst[i].page, burst[i].version, value);
        } else if (bad_pages++ < MAX_BAD) {
            say("BAD page=%llu is not in the server\n", (unsigned long long)burst[i].page);
        }
    }
    burst_length = 0;
}

static void serve(uint64_t requests) {
    static uint64_t turn;
    for (uint64_t i = 0; i < requests; i++) {
        uint64_t page = random_hot_page();
        bool set = turn++ % SET_EVERY == 0;
        if (set) version_of[page]++, writes++;
        ask(page, set);
    }
    hear();
}

static void check_pages(uint64_t first, uint64_t count) {
    for (uint64_t page = first; page < first + count; page++) {
        if (prove.pattern == REDIS) {
            ask(page, false);
        } else {
            check_words(page, version_of[page], pages[page]);
        }
    }
    hear();
}

static uint64_t hash_of(const uint8_t *page) {
    const uint64_t *word = (const uint64_t *)page;
    uint64_t hash = prove.seed;
    for (uint64_t i = 0; i < WORDS; i++) hash = (hash ^ word[i]) * 0x9e3779b97f4a7c15ull, hash ^= hash >> 29;
    return hash;
}

static void check_disk_page(uint64_t page) {
    uint64_t got = hash_of(disk + page * PAGE);
    if (got == disk_hash[page] || bad_pages++ >= MAX_BAD) return;
    say("BAD disk page=%llu want=%llx got=%llx\n", (unsigned long long)page, (unsigned long long)disk_hash[page],
        (unsigned long long)got);
}

// A table that went back to an older state together with its pages would agree with them; the sum would not.
static void check_table(void) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < page_count; i++) sum += version_of[i];
    if (sum == writes) return;
    bad_pages++;
    say("BAD table sum=%llu writes=%llu\n", (unsigned long long)sum, (unsigned long long)writes);
}

static void check_some(void) {
    uint64_t end = cursor < page_count ? page_count : page_count + disk_pages;
    uint64_t count = end - cursor < CHECK_SLICE ? end - cursor : CHECK_SLICE;
    if (cursor < page_count) {
        check_pages(cursor, count);
    } else {
        for (uint64_t i = 0; i < count; i++) check_disk_page(cursor - page_count + i);
    }
    checked += count, cursor += count;
    if (cursor < page_count + disk_pages) return;
    check_table();
    checked += direct_take_checked(), bad_pages += direct_take_wrong();
    say("V %llu %s %llu %llu\n", (unsigned long long)pass, bad_pages ? "BAD" : "ok", (unsigned long long)checked,
        (unsigned long long)writes);
    pass++, cursor = 0, checked = 0, bad_pages = 0;
}

// ---- The two threads ----------------------------------------------------------------------------------------------

static void *ticker(void *unused) {
    (void)unused;
    struct sched_param priority = {.sched_priority = 10};
    pthread_setschedparam(pthread_self(), SCHED_FIFO, &priority);
    uint64_t due = now();
    for (uint64_t sequence = 1;; sequence++) {
        say("T %llu %llu %llu\n", (unsigned long long)sequence, (unsigned long long)now(),
            (unsigned long long)__atomic_load_n(&work_done, __ATOMIC_RELAXED));
        due += prove.tick_ms * MS;
        uint64_t at = now();
        if (due < at) due = at;  // after a delay the ticks go on at their pace; they do not catch up
        struct timespec t = {.tv_sec = (time_t)(due / 1000000000ull), .tv_nsec = (long)(due % 1000000000ull)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
    }
    return NULL;
}

// Writes at the asked rate and checks with at most prove.share per cent of the time, in slices of about a millisecond.
static void work(void) {
    bool writing = prove.pattern != IDLE && hot_count;
    uint64_t started = now(), written_until = started, check_spent = 0;
    for (;;) {
        uint64_t at = now();
        uint64_t owed = writing ? BURST : 0;
        if (writing && prove.rate) {
            uint64_t period = 1000000000ull / prove.rate;
            // Rather write less than asked than in bursts: at most 20 ms are made up for.
            if (at > written_until + 20 * MS) written_until = at - 20 * MS;
            owed = (at - written_until) / period;
            if (owed > BURST) owed = BURST;
            written_until += owed * period;
        }
        if (prove.pattern == REDIS) {
            serve(owed);
        } else if (visits()) {
            visit_some(owed);
        } else {
            for (uint64_t i = 0; i < owed; i++) write_page(random_hot_page());
        }
        work_is_done(owed);
        uint64_t before = now(), allowed = (before - started) / 100 * prove.share;
        if (allowed > check_spent) {
            if (allowed > check_spent + 20 * MS) check_spent = allowed - 20 * MS;
            check_some();
            check_spent += now() - before;
        } else if (owed < BURST) {
            struct timespec nap = {.tv_nsec = 1 * MS};
            nanosleep(&nap, NULL);
        }
    }
}

// ---- Start --------------------------------------------------------------------------------------------------------

static uint64_t number(const char *text) {
    char *end;
    uint64_t value = strtoull(text, &end, 0);
    switch (*end) {
    case 'K': return value << 10;
    case 'M': return value << 20;
    case 'G': return value << 30;
    default: return value;
    }
}

static void parameter(const char *name, const char *value) {
    if (!strcmp(name, "pattern")) {
        for (unsigned i = 0; i < sizeof pattern_names / sizeof *pattern_names; i++) {
            if (!strcmp(value, pattern_names[i])) {
                prove.pattern = (enum pattern)i;
                return;
            }
        }
        say("BAD prover: unknown pattern %s\n", value);
        exit(1);
    }
    const struct { const char *name; uint64_t *place; } numbers[] = {
        {"region", &prove.region}, {"hot", &prove.hot},     {"rate", &prove.rate},   {"seed", &prove.seed},
        {"tick", &prove.tick_ms},  {"lines", &prove.lines}, {"share", &prove.share}, {"zero", &prove.zero},
        {"value", &prove.value}};
    for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (!strcmp(name, numbers[i].name)) {
            *numbers[i].place = number(value);
            return;
        }
    }
    if (!strcmp(name, "disk")) {
        snprintf(prove.disk, sizeof prove.disk, "%s", value);
    } else if (!strcmp(name, "direct")) {
        snprintf(prove.direct, sizeof prove.direct, "%s", value);
    } else {
        say("BAD prover: unknown parameter prove.%s\n", name);
        exit(1);
    }
}

static void parameters(void) {
    prove.pattern = IDLE, prove.region = 64 << 20, prove.hot = ~0ull, prove.rate = 1000, prove.seed = 1;
    prove.tick_ms = 5, prove.lines = 1, prove.share = 0, prove.zero = 10, prove.value = 1024;
    static char line[4096];
    int file = open("/proc/cmdline", O_RDONLY);
    if (file < 0 || read(file, line, sizeof line - 1) <= 0) die("/proc/cmdline");
    close(file);
    for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
        char *equals = strchr(word, '=');
        if (strncmp(word, "prove.", 6) || !equals) continue;
        *equals = 0;
        parameter(word + 6, equals + 1);
    }
    if (prove.hot > prove.region) prove.hot = prove.region;
    if (!prove.lines || prove.lines > FEW_LINES || prove.value < 16 || prove.value > PAGE || prove.value % 8) {
        say("BAD prover: lines must be 1 to %d, value 16 to %d and a multiple of 8\n", FEW_LINES, PAGE);
        exit(1);
    }
    // An idle guest should look idle; a reader reads.
    uint64_t share = prove.pattern == IDLE ? 10 : prove.pattern == READMOSTLY ? 60 : 20;
    if (prove.share < 1 || prove.share > 100) prove.share = share;
    if (!prove.tick_ms) prove.tick_ms = 5;
}

static void open_console(void) {
    console = open("/dev/ttyS0", O_RDWR | O_NOCTTY);
    if (console < 0) console = STDOUT_FILENO;
    struct termios raw;
    if (tcgetattr(console, &raw) == 0) {
        cfmakeraw(&raw);
        cfsetspeed(&raw, B115200);
        tcsetattr(console, TCSANOW, &raw);
    }
}

static void read_disk(void) {
    if (!prove.disk[0]) return;
    int file = open(prove.disk, O_RDONLY);
    uint64_t size = 0;
    if (file < 0) die(prove.disk);
    if (ioctl(file, BLKGETSIZE64, &size) < 0) die("size of the disk");
    disk_pages = size / PAGE;
    disk_hash = calloc(disk_pages, sizeof *disk_hash);
    // The mapping shows the page cache itself, so what is checked later is the memory, not a second reading.
    disk = mmap(NULL, disk_pages * PAGE, PROT_READ, MAP_SHARED, file, 0);
    if (!disk_hash || disk == MAP_FAILED) die("memory for the disk");
    posix_fadvise(file, 0, 0, POSIX_FADV_SEQUENTIAL);
    for (uint64_t i = 0; i < disk_pages; i++) disk_hash[i] = hash_of(disk + i * PAGE);
}

static void fill(void) {
    for (unsigned i = 0; i < VOCABULARY; i++) {
        uint64_t letters = mix(0x61707573 + i), token = 0;
        for (unsigned k = 0; k < 8; k++) token = token << 8 | ('a' + (letters >> 8 * k & 0xff) % 26);
        vocabulary[i] = (token & ~0xffull) | ' ';
    }
    uint64_t bytes = prove.pattern == REDIS ? prove.value : PAGE;
    page_words = (unsigned)bytes / 8;
    page_count = prove.region / bytes, hot_count = prove.hot / bytes;
    random_state = mix(prove.seed);
    version_of = calloc(page_count, sizeof *version_of);
    if (!version_of) die("memory for the versions");
    if (prove.pattern == REDIS) {
        redis_start();
        for (uint64_t i = 0; i < page_count; i++) {
            ask(i, true);
            if (burst_length == BURST || i + 1 == page_count) hear();
        }
        return;
    }
    pages = mmap(NULL, page_count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) die("memory for the region");
    for (uint64_t i = 0; i < page_count; i++) content(i, 0, pages[i]);
}

int main(void) {
    open_console();
    parameters();
    pthread_t thread;
    if (pthread_create(&thread, NULL, ticker, NULL)) die("ticker");
    read_disk();
    fill();
    if (prove.direct[0]) direct_start(prove.direct);
    say("R pattern=%s region=%llu hot=%llu rate=%llu seed=%llu disk=%llu\n", pattern_names[prove.pattern],
        (unsigned long long)prove.region, (unsigned long long)prove.hot, (unsigned long long)prove.rate,
        (unsigned long long)prove.seed, (unsigned long long)(disk_pages * PAGE));
    work();
}
