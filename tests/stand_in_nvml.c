/* Two GPUs that do not exist, as the real pynvml asks a driver about them. What is missing here raises there, as on old drivers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { unsigned long long total, free, used; } memory_t;

int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { (void)code; return "not supported by this stand-in"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if (index > 1) return 2;
    *handle = (void *)(size_t)(index + 1);
    return 0;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    if (strcmp(uuid, "GPU-1")) return 6;
    *handle = (void *)2;
    return 0;
}
int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    (void)handle;
    snprintf(name, length, "Stand-in 9000");
    return 0;
}
int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length) {
    snprintf(uuid, length, "GPU-%d", (int)(size_t)handle - 1);
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    (void)handle;
    memory->total = 24ull << 30;
    memory->free = memory->used = 12ull << 30;
    return 0;
}
int nvmlDeviceGetPowerManagementLimit(void *handle, unsigned *milliwatts) {
    *milliwatts = (size_t)handle == 1 ? 350000 : 300000;
    return 0;
}
int nvmlDeviceGetMaxClockInfo(void *handle, int clock, unsigned *mhz) {
    (void)handle;
    *mhz = clock == 1 ? 1980 : 0;
    return 0;
}
int nvmlDeviceGetMaxPcieLinkGeneration(void *handle, unsigned *generation) { (void)handle; *generation = 4; return 0; }
int nvmlDeviceGetMaxPcieLinkWidth(void *handle, unsigned *width) { (void)handle; *width = 16; return 0; }
int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    snprintf(version, length, "580.42");
    return 0;
}
/* The driver's CUDA, as 1000 times its major and 10 times its minor version, where the environment names one. */
int nvmlSystemGetCudaDriverVersion(int *version) {
    const char *asked = getenv("STAND_IN_CUDA");
    *version = asked ? atoi(asked) : 13000;
    return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    const char *asked = getenv("STAND_IN_CAPABILITY");
    (void)handle;
    *major = asked ? atoi(asked) / 10 : 9;
    *minor = asked ? atoi(asked) % 10 : 0;
    return 0;
}

/* What is sampled while a card works. A healthy card's answers, unless the environment names others: it may be changed at any
   time (os.environ reaches getenv), so that a card warms up, is shared or vanishes (STAND_IN_LOST) while it is watched. */
static unsigned long long asked_or(const char *name, unsigned long long healthy) {
    const char *asked = getenv(name);
    return asked && *asked ? strtoull(asked, NULL, 0) : healthy;
}
static int lost(void) { return getenv("STAND_IN_LOST") ? 15 : 0; }
static int number(const char *name, unsigned healthy, unsigned *answer) {
    *answer = (unsigned)asked_or(name, healthy);
    return lost();
}

typedef struct { unsigned gpu, memory; } utilisation_t;
typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; } running_t;
typedef struct { unsigned pid; unsigned long long at_us; unsigned sm, memory, encoder, decoder; } used_t;

int nvmlDeviceGetUtilizationRates(void *handle, utilisation_t *utilisation) {
    (void)handle;
    utilisation->memory = 0;
    return number("STAND_IN_UTILISATION_PCT", 90, &utilisation->gpu);
}
int nvmlDeviceGetJpgUtilization(void *handle, unsigned *pct, unsigned *period_us) {
    (void)handle;
    *period_us = 100000;
    return number("STAND_IN_JPEG_PCT", 40, pct);
}
int nvmlDeviceGetClockInfo(void *handle, int clock, unsigned *mhz) {
    (void)handle;
    return clock == 1 ? number("STAND_IN_SM_CLOCK_MHZ", 1900, mhz) : 2;
}
int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) {
    (void)handle;
    return number("STAND_IN_POWER_MW", 300500, milliwatts);
}
int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *celsius) {
    (void)handle;
    return sensor == 0 ? number("STAND_IN_TEMPERATURE_C", 60, celsius) : 2;
}
int nvmlDeviceGetCurrentClocksEventReasons(void *handle, unsigned long long *reasons) {
    (void)handle;
    *reasons = asked_or("STAND_IN_CLOCK_EVENT_REASONS", 0);
    return lost();
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *reasons) {
    return nvmlDeviceGetCurrentClocksEventReasons(handle, reasons);
}
/* Millijoules: each look finds 250 J more, on the second card 500. */
int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *millijoules) {
    static unsigned long long looks[64];
    *millijoules = 1000000 + ++looks[(size_t)handle % 64] * 250000 * (size_t)handle;
    return lost();
}

/* The next "pid:number" of a list with spaces, where pid may be `self`; 0 at its end. */
static int next_pair(const char **list, unsigned *pid, unsigned long long *value) {
    char name[32];
    int read;
    if (!*list || sscanf(*list, " %31[^:]:%llu%n", name, value, &read) != 2) return 0;
    *pid = strcmp(name, "self") ? (unsigned)atoi(name) : (unsigned)getpid();
    *list += read;
    return 1;
}
static unsigned pairs(const char *list) {
    unsigned count = 0, pid;
    unsigned long long value;
    while (next_pair(&list, &pid, &value)) count++;
    return count;
}
/* STAND_IN_RUNNING="self:2048 17:100": processes that compute, and MiB of each; none if it is not set. */
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, running_t *processes) {
    const char *list = getenv("STAND_IN_RUNNING");
    unsigned room = *count, found = 0, pid;
    unsigned long long mib;
    (void)handle;
    if (lost()) return lost();
    *count = pairs(list);
    if (room < *count) return 7;
    while (next_pair(&list, &pid, &mib)) processes[found++] = (running_t){pid, mib << 20, 0, 0};
    return 0;
}
/* STAND_IN_USED="self:80 17:30": processes that used the GPU since the last look, and per cent; not found if it is not set. */
int nvmlDeviceGetProcessUtilization(void *handle, used_t *processes, unsigned *count, unsigned long long last_seen_us) {
    const char *list = getenv("STAND_IN_USED");
    unsigned room = *count, found = 0, pid;
    unsigned long long pct;
    (void)handle;
    if (lost()) return lost();
    if (!(*count = pairs(list))) return 6;
    if (room < *count || !processes) return 7;
    while (next_pair(&list, &pid, &pct)) processes[found++] = (used_t){pid, last_seen_us + 500000, (unsigned)pct, 0, 0, 0};
    return 0;
}

/* What `doctor --box` asks of cards at rest. A fault that the environment names is the second card's alone. */
static int of_second(void *handle, const char *name, unsigned healthy, unsigned *answer) {
    *answer = (size_t)handle == 2 ? (unsigned)asked_or(name, healthy) : healthy;
    return lost();
}

typedef struct { char old_bus_id[16]; unsigned domain, bus, device, device_id, subsystem_id; char bus_id[32]; } pci_t;

int nvmlDeviceGetPciInfo_v3(void *handle, pci_t *pci) {
    memset(pci, 0, sizeof *pci);
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%s:00.0", (size_t)handle == 1 ? "17" : "CA");
    return lost();
}
int nvmlDeviceGetCurrPcieLinkWidth(void *handle, unsigned *width) {
    return of_second(handle, "STAND_IN_LINK_WIDTH", 16, width);
}
int nvmlDeviceGetCurrPcieLinkGeneration(void *handle, unsigned *generation) {
    return of_second(handle, "STAND_IN_LINK_GENERATION", 4, generation);
}
/* The limit as a percentage of its default, where the environment names one: as on old drivers, there is no default without. */
int nvmlDeviceGetPowerManagementDefaultLimit(void *handle, unsigned *milliwatts) {
    unsigned pct;
    if (!getenv("STAND_IN_POWER_LIMIT_PCT")) return 3;
    of_second(handle, "STAND_IN_POWER_LIMIT_PCT", 100, &pct);
    nvmlDeviceGetPowerManagementLimit(handle, milliwatts);
    *milliwatts = *milliwatts / pct * 100;
    return lost();
}
/* Uncorrected errors: since the driver started (0), or in the card's life (1). */
int nvmlDeviceGetTotalEccErrors(void *handle, int kind, int span, unsigned long long *errors) {
    unsigned found;
    if (kind != 1) return 3;
    of_second(handle, span ? "STAND_IN_ECC_EVER" : "STAND_IN_ECC_SINCE_START", 0, &found);
    *errors = found;
    return lost();
}
int nvmlDeviceGetRemappedRows(void *handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    *corrected = *uncorrected = 0;
    of_second(handle, "STAND_IN_REPAIR_PENDING", 0, pending);
    return of_second(handle, "STAND_IN_REPAIR_FAILED", 0, failed);
}
int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    *pending = 0;
    return of_second(handle, "STAND_IN_MIG", 0, current);
}
int nvmlDeviceGetPersistenceMode(void *handle, unsigned *mode) { return of_second(handle, "STAND_IN_PERSISTENCE", 1, mode); }
/* STAND_IN_XORG_MIB: what a desktop's server holds on the second card; there is none if it is not set. */
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, running_t *processes) {
    unsigned room = *count;
    *count = (size_t)handle == 2 && getenv("STAND_IN_XORG_MIB");
    if (room < *count) return 7;
    if (*count) *processes = (running_t){1000, asked_or("STAND_IN_XORG_MIB", 0) << 20, 0, 0};
    return lost();
}
/* STAND_IN_P2P: NVML's status of reading each other's memory; 0 is well. */
int nvmlDeviceGetP2PStatus(void *one, void *other, int capability, unsigned *status) {
    (void)one, (void)other, (void)capability;
    return number("STAND_IN_P2P", 0, status);
}
int nvmlDeviceGetTopologyCommonAncestor(void *one, void *other, unsigned *level) {
    (void)one, (void)other;
    return number("STAND_IN_ANCESTOR", 30, level);
}
