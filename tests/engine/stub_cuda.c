/* A CUDA driver without a GPU, for tests: memory is the host's, work is done at once, every call is named on stderr.
   As the real one it refuses what is called on a thread that has no context. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long address;
enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201 };
static __thread void *contexts[16];
static __thread int depth;
static int primary;
static size_t used, most = 64u << 20;

#define CALL(name, arguments, body) int name arguments { fprintf(stderr, "%s\n", #name); body return 0; }
#define HERE(name, arguments, body) CALL(name, arguments, if (!depth) return INVALID_CONTEXT; body)

int cuGetErrorString(int error, const char **text) { *text = "the stub refuses"; return 0; }
CALL(cuInit, (unsigned flags), )
CALL(cuDriverGetVersion, (int *version), *version = 13020;)
CALL(cuDeviceGetCount, (int *count), *count = 1;)
CALL(cuDeviceGet, (int *device, int index), *device = index; if (index) return INVALID_DEVICE;)
CALL(cuDeviceGetName, (char *name, int size, int device), strncpy(name, "Stub GPU", size);)
CALL(cuDeviceComputeCapability, (int *major, int *minor, int device), *major = 9; *minor = 0;)
CALL(cuDevicePrimaryCtxRetain, (void **context, int device), *context = &primary;)
CALL(cuDevicePrimaryCtxRelease_v2, (int device), )
CALL(cuCtxPushCurrent_v2, (void *context), contexts[depth++] = context;)
HERE(cuCtxPopCurrent_v2, (void **context), *context = contexts[--depth];)
HERE(cuCtxGetDevice, (int *device), *device = 0;)
HERE(cuCtxSynchronize, (void), )
HERE(cuMemGetInfo_v2, (size_t *free_bytes, size_t *total), *free_bytes = most - used; *total = most;)
HERE(cuMemAlloc_v2, (address *at, size_t size),
     if (used + size > most) return OUT_OF_MEMORY;
     used += size; *at = (address)aligned_alloc(256, (size + 255) / 256 * 256);)
HERE(cuMemFree_v2, (address at), free((void *)at);)
HERE(cuMemHostAlloc, (void **at, size_t size, unsigned flags), if (size > most) return OUT_OF_MEMORY; *at = malloc(size);)
HERE(cuMemFreeHost, (void *at), free(at);)
HERE(cuStreamCreate, (void **stream, unsigned flags), *stream = malloc(1);)
HERE(cuStreamDestroy_v2, (void *stream), free(stream);)
HERE(cuEventCreate, (void **event, unsigned flags), if (flags != 3) return INVALID_VALUE; *event = malloc(1);)
HERE(cuEventDestroy_v2, (void *event), free(event);)
HERE(cuEventRecord, (void *event, void *stream), )
HERE(cuEventSynchronize, (void *event), )
HERE(cuMemcpyHtoDAsync_v2, (address to, const void *from, size_t size, void *stream), memcpy((void *)to, from, size);)
HERE(cuMemcpyDtoHAsync_v2, (void *to, address from, size_t size, void *stream), memcpy(to, (void *)from, size);)
