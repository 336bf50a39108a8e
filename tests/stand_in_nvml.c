/* Two GPUs that do not exist, as the real pynvml asks a driver about them. What is missing here raises there, as on old drivers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
