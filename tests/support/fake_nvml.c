/* Answers as libnvidia-ml.so.1 for the functions that sidestep calls, as a control file says.
 *
 * The file is named by $FAKE_NVML_CONTROL and looked at in every call, so that a test changes the
 * driver's mind while it is in use. Its lines are `key value`:
 *
 *   gpus N                   number of devices (default 1)
 *   return.FUNCTION CODE     what FUNCTION returns, e.g. return.nvmlDeviceGetPowerUsage 4
 *   gpuN.return.FUNCTION CODE    the same for one device
 *   gpuN.lost 1              every call for the device returns NVML_ERROR_GPU_IS_LOST
 *   hang FUNCTION            FUNCTION never returns
 *   crash FUNCTION           FUNCTION segfaults
 *   gpuN.KEY VALUE           a value; see the functions for the keys and defaults
 *   gpuN.mig M               MIG is enabled, with M instances; gpuN.migK.KEY VALUE
 *
 * A function that is to be missing is renamed when this is compiled: -DnvmlX=absent_nvmlX.
 */

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    GPU_IS_LOST = 15,
};

/* --- the control file ---------------------------------------------------------------------- */

#define MAX_ENTRIES 1000

static struct {
    char key[120], value[120];
} entries[MAX_ENTRIES];
static int entry_count;
static int initialized;

static void reload(void) {
    static struct stat seen;
    struct stat now;
    const char *path = getenv("FAKE_NVML_CONTROL");
    if (path == NULL || stat(path, &now) != 0)
        return;
    if (now.st_ino == seen.st_ino && now.st_mtim.tv_sec == seen.st_mtim.tv_sec &&
        now.st_mtim.tv_nsec == seen.st_mtim.tv_nsec)
        return;
    seen = now;
    entry_count = 0;
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return;
    while (entry_count < MAX_ENTRIES &&
           fscanf(file, "%119s %119[^\n]", entries[entry_count].key,
                  entries[entry_count].value) == 2)
        entry_count++;
    fclose(file);
}

static const char *text(const char *otherwise, const char *format, ...) {
    char key[120];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(key, sizeof key, format, arguments);
    va_end(arguments);
    for (int i = 0; i < entry_count; i++)
        if (strcmp(entries[i].key, key) == 0)
            return entries[i].value;
    return otherwise;
}

static unsigned long long number(const char *value) { return strtoull(value, NULL, 0); }

/* --- devices ------------------------------------------------------------------------------- */

/* A handle: 1 + GPU's index, and above bit 16 the place of a MIG instance plus one. */
typedef struct device *Device;

static Device handle_of(int gpu, int instance) {
    return (Device)(long)((instance + 1) << 16 | (gpu + 1));
}
static int gpu_of(Device device) { return ((long)device & 0xFFFF) - 1; }
static int instance_of(Device device) { return ((long)device >> 16) - 1; }

/* A device's value; `name` for a GPU, and nothing but memory and names for a MIG instance. */
static const char *value_of(Device device, const char *name, const char *otherwise) {
    int gpu = gpu_of(device), instance = instance_of(device);
    if (instance >= 0)
        return text(otherwise, "gpu%d.mig%d.%s", gpu, instance, name);
    return text(otherwise, "gpu%d.%s", gpu, name);
}

/* What every function begins with. */
static int enter(const char *function) {
    reload();
    if (strcmp(text("", "hang"), function) == 0)
        for (;;)
            pause();
    if (strcmp(text("", "crash"), function) == 0)
        *(volatile int *)0 = 0;
    return (int)number(text("0", "return.%s", function));
}

static int enter_device(const char *function, Device device) {
    int code = enter(function);
    if (code != SUCCESS)
        return code;
    if (!initialized)
        return UNINITIALIZED;
    if (gpu_of(device) < 0)
        return INVALID_ARGUMENT;
    if (number(text("0", "gpu%d.lost", gpu_of(device))))
        return GPU_IS_LOST;
    return (int)number(text("0", "gpu%d.return.%s", gpu_of(device), function));
}

#define ENTER()                                                                                    \
    do {                                                                                           \
        int code = enter(__func__);                                                                \
        if (code != SUCCESS)                                                                       \
            return code;                                                                           \
    } while (0)
#define ENTER_DEVICE(device)                                                                       \
    do {                                                                                           \
        int code = enter_device(__func__, device);                                                 \
        if (code != SUCCESS)                                                                       \
            return code;                                                                           \
    } while (0)
#define WHOLE_GPU(device)                                                                          \
    do {                                                                                           \
        ENTER_DEVICE(device);                                                                      \
        if (instance_of(device) >= 0)                                                              \
            return NOT_SUPPORTED;                                                                  \
    } while (0)
#define NUMBER(device, name, otherwise) number(value_of(device, name, otherwise))

/* --- the library --------------------------------------------------------------------------- */

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    ENTER();
    initialized = 1;
    return SUCCESS;
}

int nvmlShutdown(void) {
    ENTER();
    initialized = 0;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    (void)code;
    return "an error of the fake NVML";
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    ENTER();
    *count = (unsigned)number(text("1", "gpus"));
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    ENTER();
    if (index >= number(text("1", "gpus")))
        return INVALID_ARGUMENT;
    *device = handle_of((int)index, -1);
    return enter_device(__func__, *device);
}

int nvmlDeviceGetUUID(Device device, char *uuid, unsigned length) {
    ENTER_DEVICE(device);
    char otherwise[64];
    int gpu = gpu_of(device), instance = instance_of(device);
    if (instance >= 0)
        snprintf(otherwise, sizeof otherwise, "MIG-%08x-0000-0000-0000-%012x", gpu, instance + 1);
    else
        snprintf(otherwise, sizeof otherwise, "GPU-%08x-0000-0000-0000-000000000000", gpu);
    snprintf(uuid, length, "%s", value_of(device, "uuid", otherwise));
    return SUCCESS;
}

int nvmlDeviceGetName(Device device, char *name, unsigned length) {
    ENTER_DEVICE(device);
    snprintf(name, length, "%s", value_of(device, "name", "NVIDIA Fake 80GB"));
    return SUCCESS;
}

/* --- a GPU's values ------------------------------------------------------------------------ */

struct utilization {
    unsigned gpu, memory;
};

int nvmlDeviceGetUtilizationRates(Device device, struct utilization *rates) {
    WHOLE_GPU(device);
    rates->gpu = (unsigned)NUMBER(device, "utilization", "50");
    rates->memory = (unsigned)NUMBER(device, "memory_utilization", "25");
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(Device device, unsigned *milliwatts) {
    WHOLE_GPU(device);
    *milliwatts = (unsigned)NUMBER(device, "power_mw", "300000");
    return SUCCESS;
}

struct temperature {
    unsigned version, sensor;
    int celsius;
};

int nvmlDeviceGetTemperatureV(Device device, struct temperature *temperature) {
    WHOLE_GPU(device);
    if (temperature->version != 0x100000C)
        return INVALID_ARGUMENT;
    temperature->celsius = (int)NUMBER(device, "temperature_c", "60");
    return SUCCESS;
}

int nvmlDeviceGetTemperature(Device device, unsigned sensor, unsigned *celsius) {
    (void)sensor;
    WHOLE_GPU(device);
    *celsius = (unsigned)NUMBER(device, "temperature_c", "60");
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(Device device, unsigned type, unsigned *mhz) {
    WHOLE_GPU(device);
    if (type != 1)
        return INVALID_ARGUMENT;
    *mhz = (unsigned)NUMBER(device, "sm_clock_mhz", "1980");
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksEventReasons(Device device, unsigned long long *reasons) {
    WHOLE_GPU(device);
    *reasons = NUMBER(device, "throttle_reasons", "4");
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device device, unsigned long long *reasons) {
    WHOLE_GPU(device);
    *reasons = NUMBER(device, "throttle_reasons", "4");
    return SUCCESS;
}

struct memory {
    unsigned long long total, free, used;
};
struct memory_v2 {
    unsigned version;
    unsigned long long total, reserved, free, used;
};

int nvmlDeviceGetMemoryInfo(Device device, struct memory *memory) {
    ENTER_DEVICE(device);
    memory->total = NUMBER(device, "memory_total", "80000000000");
    memory->used = NUMBER(device, "memory_used", "20000000000") +
                   NUMBER(device, "memory_reserved", "500000000");
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(Device device, struct memory_v2 *memory) {
    ENTER_DEVICE(device);
    if (memory->version != 0x02000028)
        return INVALID_ARGUMENT;
    memory->total = NUMBER(device, "memory_total", "80000000000");
    memory->reserved = NUMBER(device, "memory_reserved", "500000000");
    memory->used = NUMBER(device, "memory_used", "20000000000");
    memory->free = memory->total - memory->used - memory->reserved;
    return SUCCESS;
}

int nvmlDeviceGetPcieThroughput(Device device, unsigned counter, unsigned *kib_per_s) {
    WHOLE_GPU(device);
    *kib_per_s = (unsigned)(counter == 0 ? NUMBER(device, "pcie_tx_kib_s", "1000")
                                         : NUMBER(device, "pcie_rx_kib_s", "2000"));
    return SUCCESS;
}

struct field {
    unsigned id, scope;
    long long timestamp, latency_us;
    unsigned type;
    int code;
    union {
        double number;
        unsigned long long counter;
    } value;
};

/* Only NVLink's counters, and only where gpuN.nvlink_tx_kib and _rx_kib are given. */
int nvmlDeviceGetFieldValues(Device device, int count, struct field *fields) {
    WHOLE_GPU(device);
    for (int i = 0; i < count; i++) {
        const char *name = fields[i].id == 138   ? "nvlink_tx_kib"
                           : fields[i].id == 139 ? "nvlink_rx_kib"
                                                 : "";
        const char *value = value_of(device, name, NULL);
        fields[i].type = 3;
        fields[i].code = value == NULL || fields[i].scope != 0xFFFFFFFF ? NOT_SUPPORTED : SUCCESS;
        if (fields[i].code == SUCCESS)
            fields[i].value.counter = number(value);
    }
    return SUCCESS;
}

/* --- MIG ----------------------------------------------------------------------------------- */

int nvmlDeviceGetMigMode(Device device, unsigned *current, unsigned *pending) {
    WHOLE_GPU(device);
    const char *instances = value_of(device, "mig", NULL);
    if (instances == NULL)
        return NOT_SUPPORTED;
    *current = *pending = number(instances) > 0;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(Device device, unsigned *count) {
    WHOLE_GPU(device);
    *count = 7;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device device, unsigned index, Device *instance) {
    WHOLE_GPU(device);
    if (index >= NUMBER(device, "mig", "0"))
        return NOT_FOUND;
    *instance = handle_of(gpu_of(device), (int)index);
    return SUCCESS;
}
