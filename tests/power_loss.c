/* Records what a process changes in the files below $POWER_LOSS_ROOT, in the order in which it does, into $POWER_LOSS_LOG.
 *
 * Preloaded: cc -shared -fPIC -O1 -o power_loss.so power_loss.c -ldl -lpthread; tests/power_loss.py reads the log.
 * A record: operation, lengths of two paths (int32 each), offset, length of the data (int64 each); the paths; the data.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, WRITE, TRUNCATE, RENAME, LINK, UNLINK, MKDIR, RMDIR, SYMLINK, SYNC, MARK };

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER; /* an operation and its record are one */
static int log_fd = -1;
static pid_t log_pid;

#define REAL(type, name, ...)                                  \
    static type (*real)(__VA_ARGS__);                          \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int the_log(void) {
    const char *path = getenv("POWER_LOSS_LOG");
    if (!path) return -1;
    if (log_fd < 0 || log_pid != getpid()) {
        REAL(int, "open", const char *, int, ...);
        log_fd = real(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        log_pid = getpid();
    }
    return log_fd;
}

static void record(int operation, const char *path, const char *other, int64_t offset, const void *data, int64_t length) {
    int saved = errno, fd = the_log();
    if (fd >= 0) {
        int32_t head[3] = {operation, (int32_t)strlen(path), (int32_t)strlen(other)};
        int64_t sizes[2] = {offset, length};
        struct iovec parts[5] = {{head, sizeof head}, {sizes, sizeof sizes}, {(void *)path, head[1]},
                                 {(void *)other, head[2]}, {(void *)data, (size_t)length}};
        REAL(ssize_t, "writev", int, const struct iovec *, int);
        if (real(fd, parts, 5) < 0) abort();
    }
    errno = saved;
}

static int inside(const char *path) {
    const char *root = getenv("POWER_LOSS_ROOT");
    size_t n = root ? strlen(root) : 0;
    return n && strncmp(path, root, n) == 0 && (path[n] == '/' || path[n] == 0);
}

/* The absolute path of a name, or of an open file; whether it is watched. */
static int place(int directory, const char *name, char *found) {
    int saved = errno;
    char link[64];
    found[0] = 0;
    if (name && name[0] == '/') {
        snprintf(found, PATH_MAX, "%s", name);
    } else if (name && directory == AT_FDCWD) {
        if (!getcwd(found, PATH_MAX)) found[0] = 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t n = readlink(link, found, PATH_MAX - 1);
        found[n < 0 ? 0 : n] = 0;
    }
    if (name && name[0] != '/' && found[0]) {
        size_t n = strlen(found);
        snprintf(found + n, PATH_MAX - n, "/%s", name);
    }
    errno = saved;
    return inside(found);
}

static int opened(int fd, int directory, const char *name, int flags) {
    char path[PATH_MAX];
    if (fd >= 0 && (flags & (O_CREAT | O_TRUNC)) && place(directory, name, path))
        record(OPEN, path, "", (flags & O_TRUNC) ? 1 : 0, "", 0);
    return fd;
}

#define LOCKED(type, call)              \
    pthread_mutex_lock(&order);         \
    type result = call;

#define DONE                            \
    pthread_mutex_unlock(&order);       \
    return result;

#define OPENING(symbol)                                                                       \
    int symbol(const char *name, int flags, ...) {                                            \
        REAL(int, #symbol, const char *, int, ...);                                           \
        va_list rest;                                                                         \
        va_start(rest, flags);                                                                \
        mode_t mode = (flags & (O_CREAT | __O_TMPFILE)) ? va_arg(rest, mode_t) : 0;           \
        va_end(rest);                                                                         \
        char path[PATH_MAX];                                                                  \
        if (!place(AT_FDCWD, name, path)) return real(name, flags, mode); /* a pipe may block */ \
        LOCKED(int, opened(real(name, flags, mode), AT_FDCWD, name, flags))                   \
        DONE                                                                                  \
    }
OPENING(open)
OPENING(open64)

#define OPENING_AT(symbol)                                                                    \
    int symbol(int directory, const char *name, int flags, ...) {                             \
        REAL(int, #symbol, int, const char *, int, ...);                                      \
        va_list rest;                                                                         \
        va_start(rest, flags);                                                                \
        mode_t mode = (flags & (O_CREAT | __O_TMPFILE)) ? va_arg(rest, mode_t) : 0;           \
        va_end(rest);                                                                         \
        char path[PATH_MAX];                                                                  \
        if (!place(directory, name, path)) return real(directory, name, flags, mode);         \
        LOCKED(int, opened(real(directory, name, flags, mode), directory, name, flags))       \
        DONE                                                                                  \
    }
OPENING_AT(openat)
OPENING_AT(openat64)

static ssize_t written(int fd, const void *data, ssize_t n, off_t at) {
    char path[PATH_MAX];
    if (n > 0 && fd != log_fd && place(fd, NULL, path))
        record(WRITE, path, "", at >= 0 ? at : lseek(fd, 0, SEEK_CUR) - n, data, n);
    return n;
}

ssize_t write(int fd, const void *data, size_t n) {
    REAL(ssize_t, "write", int, const void *, size_t);
    char path[PATH_MAX];
    if (!place(fd, NULL, path)) return real(fd, data, n);
    LOCKED(ssize_t, written(fd, data, real(fd, data, n), -1))
    DONE
}

#define PWRITING(symbol)                                                          \
    ssize_t symbol(int fd, const void *data, size_t n, off_t at) {                \
        REAL(ssize_t, #symbol, int, const void *, size_t, off_t);                 \
        LOCKED(ssize_t, written(fd, data, real(fd, data, n, at), at))             \
        DONE                                                                      \
    }
PWRITING(pwrite)
PWRITING(pwrite64)

#define TRUNCATING(symbol)                                                        \
    int symbol(int fd, off_t length) {                                            \
        REAL(int, #symbol, int, off_t);                                           \
        char path[PATH_MAX];                                                      \
        LOCKED(int, real(fd, length))                                             \
        if (result == 0 && place(fd, NULL, path)) record(TRUNCATE, path, "", length, "", 0); \
        DONE                                                                      \
    }
TRUNCATING(ftruncate)
TRUNCATING(ftruncate64)

static int two(int operation, int result, int d1, const char *a, int d2, const char *b) {
    char from[PATH_MAX], to[PATH_MAX];
    int here = place(d1, a, from), there = place(d2, b, to);
    if (result == 0 && (here || there)) record(operation, from, to, 0, "", 0);
    return result;
}

static int one(int operation, int result, int directory, const char *name) {
    char path[PATH_MAX];
    if (result == 0 && place(directory, name, path)) record(operation, path, "", 0, "", 0);
    return result;
}

int rename(const char *a, const char *b) {
    REAL(int, "rename", const char *, const char *);
    LOCKED(int, two(RENAME, real(a, b), AT_FDCWD, a, AT_FDCWD, b))
    DONE
}

int renameat(int d1, const char *a, int d2, const char *b) {
    REAL(int, "renameat", int, const char *, int, const char *);
    LOCKED(int, two(RENAME, real(d1, a, d2, b), d1, a, d2, b))
    DONE
}

int link(const char *a, const char *b) {
    REAL(int, "link", const char *, const char *);
    LOCKED(int, two(LINK, real(a, b), AT_FDCWD, a, AT_FDCWD, b))
    DONE
}

int linkat(int d1, const char *a, int d2, const char *b, int flags) {
    REAL(int, "linkat", int, const char *, int, const char *, int);
    LOCKED(int, two(LINK, real(d1, a, d2, b, flags), d1, a, d2, b))
    DONE
}

int symlink(const char *target, const char *name) {
    REAL(int, "symlink", const char *, const char *);
    char path[PATH_MAX];
    LOCKED(int, real(target, name))
    if (result == 0 && place(AT_FDCWD, name, path)) record(SYMLINK, path, target, 0, "", 0);
    DONE
}

int unlink(const char *name) {
    REAL(int, "unlink", const char *);
    LOCKED(int, one(UNLINK, real(name), AT_FDCWD, name))
    DONE
}

int unlinkat(int directory, const char *name, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    LOCKED(int, one((flags & AT_REMOVEDIR) ? RMDIR : UNLINK, real(directory, name, flags), directory, name))
    DONE
}

int mkdir(const char *name, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    LOCKED(int, one(MKDIR, real(name, mode), AT_FDCWD, name))
    DONE
}

int mkdirat(int directory, const char *name, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    LOCKED(int, one(MKDIR, real(directory, name, mode), directory, name))
    DONE
}

int rmdir(const char *name) {
    REAL(int, "rmdir", const char *);
    LOCKED(int, one(RMDIR, real(name), AT_FDCWD, name))
    DONE
}

int fsync(int fd) {
    REAL(int, "fsync", int);
    LOCKED(int, one(SYNC, real(fd), fd, NULL))
    DONE
}

int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    LOCKED(int, one(SYNC, real(fd), fd, NULL))
    DONE
}

/* Something that others were told, by this moment. */
void power_loss_mark(const char *text) {
    pthread_mutex_lock(&order);
    record(MARK, text, "", 0, "", 0);
    pthread_mutex_unlock(&order);
}
