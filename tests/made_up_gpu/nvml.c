/* libnvidia-ml.so.1 as far as it is asked: it answers from the table in the file that MADE_UP_DRIVER names.
 *
 * First line: the code that nvmlInit returns, and the driver's version. Then a line for each GPU: code, uuid, memory
 * used and in all (bytes), utilisation (%), power and its limit (mW), energy (mJ), temperature (°C), name. A code other
 * than 0 is the answer to every question about that GPU; -1 for a number is "not supported". The file is read again at
 * every question, so a GPU can be lost while somebody watches.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9, INVALID_ARGUMENT = 2 };

typedef struct {
  int code;
  char uuid[96], name[96];
  long long used, total, busy, power, limit, energy, warmth;
} Gpu;

static int read_table(int index, Gpu *gpu, char *version) {
  const char *path = getenv("MADE_UP_DRIVER");
  FILE *file = path ? fopen(path, "r") : NULL;
  char line[512];
  int code, count = 0;
  if (!file) return -DRIVER_NOT_LOADED;
  if (!fgets(line, sizeof line, file) || sscanf(line, "%d %79s", &code, version) != 2 || code) {
    fclose(file);
    return -code;
  }
  while (fgets(line, sizeof line, file)) {
    Gpu found;
    if (sscanf(line, "%d %95s %lld %lld %lld %lld %lld %lld %lld %95[^\n]", &found.code, found.uuid, &found.used,
               &found.total, &found.busy, &found.power, &found.limit, &found.energy, &found.warmth, found.name) == 10 &&
        count++ == index)
      *gpu = found;
  }
  fclose(file);
  return count;
}

static int ask(long handle, Gpu *gpu) {
  char version[80];
  int count = read_table((int)handle - 1, gpu, version);
  if (count < 0) return -count;
  return handle < 1 || handle > count ? INVALID_ARGUMENT : gpu->code;
}

int nvmlInitWithFlags(unsigned flags) {
  Gpu gpu;
  char version[80];
  int count = read_table(-1, &gpu, version);
  (void)flags;
  return count < 0 ? -count : SUCCESS;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code ? "an error of the made-up driver" : "success"; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
  Gpu gpu;
  char found[80];
  int count = read_table(-1, &gpu, found);
  if (count < 0) return -count;
  snprintf(version, length, "%s", found);
  return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
  Gpu gpu;
  char version[80];
  int found = read_table(-1, &gpu, version);
  if (found < 0) return -found;
  *count = (unsigned)found;
  return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
  Gpu gpu;
  *handle = (void *)(long)(index + 1);
  return ask(index + 1, &gpu);
}

static int text(void *handle, int which, char *to, unsigned length) {
  Gpu gpu;
  int code = ask((long)handle, &gpu);
  if (!code) snprintf(to, length, "%s", which ? gpu.name : gpu.uuid);
  return code;
}
int nvmlDeviceGetUUID(void *handle, char *to, unsigned length) { return text(handle, 0, to, length); }
int nvmlDeviceGetName(void *handle, char *to, unsigned length) { return text(handle, 1, to, length); }

int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *info) {
  Gpu gpu;
  int code = ask((long)handle, &gpu);
  if (code) return code;
  if (gpu.used < 0) return NOT_SUPPORTED;
  info[0] = gpu.total, info[1] = gpu.total - gpu.used, info[2] = gpu.used;
  return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *handle, unsigned *rates) {
  Gpu gpu;
  int code = ask((long)handle, &gpu);
  if (code) return code;
  if (gpu.busy < 0) return NOT_SUPPORTED;
  rates[0] = (unsigned)gpu.busy, rates[1] = 0;
  return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *energy) {
  Gpu gpu;
  int code = ask((long)handle, &gpu);
  if (code) return code;
  if (gpu.energy < 0) return NOT_SUPPORTED;
  *energy = gpu.energy;
  return SUCCESS;
}

#define NUMBER(question, field)                     \
  int question(void *handle, unsigned *to) {        \
    Gpu gpu;                                        \
    int code = ask((long)handle, &gpu);             \
    if (code) return code;                          \
    if (gpu.field < 0) return NOT_SUPPORTED;        \
    *to = (unsigned)gpu.field;                      \
    return SUCCESS;                                 \
  }
NUMBER(nvmlDeviceGetPowerUsage, power)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, limit)

int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *to) {
  Gpu gpu;
  int code = ask((long)handle, &gpu);
  (void)sensor;
  if (code) return code;
  if (gpu.warmth < 0) return NOT_SUPPORTED;
  *to = (unsigned)gpu.warmth;
  return SUCCESS;
}
