/* Shifts the wall clock of a process by the nanoseconds in the file that CHAOS_CLOCK names, which may change at any time.
 *
 * Preloaded. The monotonic clock is left alone, as it is when somebody sets the time of a machine. Waits with a deadline
 * on the wall clock follow the shifted one, also those under way: a condition variable may wake up without a reason, so
 * a wait is cut into slices after each of which the caller looks at the clock again. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000LL
#define SLICE_NS 200000000LL

static volatile int64_t *shift_ns;
static int (*real_clock)(clockid_t, struct timespec *);
static int (*real_wait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
static int (*real_sem)(sem_t *, const struct timespec *);

static void forget_shift(void)
{
    shift_ns = 0;
}

__attribute__((constructor)) static void begin(void)
{
    pthread_atfork(0, 0, forget_shift);
    real_clock = dlsym(RTLD_NEXT, "clock_gettime");
}

/* Not at the start, and anew after a fork: a process that was forked from another may get its variables later. */
static void map_shift(void)
{
    const char *path = getenv("CHAOS_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(0, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED)
        shift_ns = mapped;
}

static int is_wall(clockid_t id)
{
    return id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE || id == CLOCK_TAI;
}

static int read_clock(clockid_t id, struct timespec *to)
{
    return real_clock ? real_clock(id, to) : (int)syscall(SYS_clock_gettime, id, to);
}

static int64_t unshifted(void)
{
    struct timespec now;
    read_clock(CLOCK_REALTIME, &now);
    return now.tv_sec * NS + now.tv_nsec;
}

static int64_t shift(void)
{
    if (!shift_ns)
        map_shift();
    return shift_ns ? *shift_ns : 0;
}

static void put(int64_t ns, struct timespec *to)
{
    to->tv_sec = ns / NS;
    to->tv_nsec = ns % NS;
}

int clock_gettime(clockid_t id, struct timespec *to)
{
    int result = read_clock(id, to);
    if (result == 0 && is_wall(id))
        put(to->tv_sec * NS + to->tv_nsec + shift(), to);
    return result;
}

int gettimeofday(struct timeval *restrict to, void *restrict zone)
{
    int64_t ns = unshifted() + shift();
    (void)zone;
    to->tv_sec = ns / NS;
    to->tv_usec = ns % NS / 1000;
    return 0;
}

time_t time(time_t *to)
{
    time_t now = (unshifted() + shift()) / NS;
    if (to)
        *to = now;
    return now;
}

int timespec_get(struct timespec *to, int base)
{
    return clock_gettime(CLOCK_REALTIME, to) == 0 ? base : 0;
}

/* Deadlines on the monotonic clock are seconds since the machine started: no machine is up for thirty years. */
static int on_wall(const struct timespec *deadline)
{
    return shift_ns && deadline->tv_sec > 1000000000;
}

/* The end of the next slice on the kernel's clock; whether the deadline has passed on the shifted one. */
static int next_slice(const struct timespec *deadline, struct timespec *slice)
{
    int64_t now = unshifted(), left = deadline->tv_sec * NS + deadline->tv_nsec - shift() - now;
    put(now + (left < 0 ? 0 : left < SLICE_NS ? left : SLICE_NS), slice);
    return left <= 0;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *deadline)
{
    struct timespec slice;
    if (!real_wait)
        real_wait = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!real_wait)
        real_wait = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    if (!on_wall(deadline))
        return real_wait(condition, mutex, deadline);
    next_slice(deadline, &slice);
    int result = real_wait(condition, mutex, &slice);
    return result == ETIMEDOUT && !next_slice(deadline, &slice) ? 0 : result;
}

int sem_timedwait(sem_t *semaphore, const struct timespec *deadline)
{
    struct timespec slice;
    if (!real_sem)
        real_sem = dlsym(RTLD_NEXT, "sem_timedwait");
    if (!on_wall(deadline))
        return real_sem(semaphore, deadline);
    for (;;) {
        int over = next_slice(deadline, &slice);
        int result = real_sem(semaphore, &slice);
        if (result == 0 || errno != ETIMEDOUT || over)
            return result;
    }
}
