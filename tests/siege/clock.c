/* Preloaded, this moves the wall clock of one process by as many seconds as a file says. Other clocks stay as they are. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *at) {
    int result = syscall(SYS_clock_gettime, id, at);
    const char *path = getenv("CLOCK_OFFSET_FILE");
    FILE *file = id == CLOCK_REALTIME && path ? fopen(path, "r") : NULL;
    long offset;
    if (file && fscanf(file, "%ld", &offset) == 1) at->tv_sec += offset;
    if (file) fclose(file);
    return result;
}
