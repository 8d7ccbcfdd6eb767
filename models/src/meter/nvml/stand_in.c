/* A library with a few of NVML's functions and one GPU, for a test: the calls are those that a driver's library would get. Each
   question for energy is 25 J later than the one before; the one after `questions_max` finds the GPU lost. */
#include <stdio.h>
#include <string.h>

enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, LOST = 15 };
enum { questions_max = 3 };

static int gpu, questions;

typedef struct { unsigned version; unsigned long long total, reserved, available, used; } memory_v2;
typedef struct { unsigned gpu, memory; } utilization;

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }

int nvmlDeviceGetHandleByUUID(const char *uuid, int **device) {
    if (strcmp(uuid, "GPU-00112233-4455-6677-8899-aabbccddeeff") != 0) return NOT_FOUND;
    *device = &gpu;
    return SUCCESS;
}

int nvmlDeviceGetName(int *device, char *name, unsigned length) {
    if (device != &gpu) return INVALID;
    snprintf(name, length, "Stand-in");
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(int *device, unsigned long long *millijoules) {
    if (device != &gpu) return INVALID;
    if (++questions > questions_max) return LOST;
    *millijoules = 1000000000000ull + 25000ull * questions;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(int *device, unsigned *milliwatts) {
    *milliwatts = 250000;
    return device == &gpu ? SUCCESS : INVALID;
}

int nvmlDeviceGetUtilizationRates(int *device, utilization *rates) {
    *rates = (utilization){ .gpu = 87, .memory = 12 };
    return device == &gpu ? SUCCESS : INVALID;
}

int nvmlDeviceGetMemoryInfo_v2(int *device, memory_v2 *memory) {
    if (device != &gpu || memory->version != (sizeof *memory | 2u << 24)) return INVALID;
    memory->total = 80ull << 30;
    memory->used = 30ull << 30;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(int *device, int sensor, unsigned *celsius) {
    (void)device, (void)sensor, (void)celsius;
    return NOT_SUPPORTED;
}
