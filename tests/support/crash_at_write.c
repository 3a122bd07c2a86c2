/* A file layer that can stop after any byte: loaded before libc's own functions (LD_PRELOAD).
 *
 * Every effect that the process has on files below a prefix is counted: a write, a file's creation, a truncation, a
 * reservation, a rename, an unlink, an fsync, a new directory. At the one that was armed, either the process is killed
 * (SIGKILL) after so many bytes of it, or the call fails with an errno, so many times in a row.
 *
 * What is stored through a mapping (SQLite's index of its log, an outbox) is no effect here.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { WRITE = 'w', CREATE = 'c', TRUNCATE = 't', RESERVE = 'a', RENAME = 'r', UNLINK = 'u', SYNC = 's', MKDIR = 'm' };

#define MAX_EFFECTS 262144
static struct { char kind; long size; } effects[MAX_EFFECTS];
static char prefix[4096];
static long count, target, keep, times;
static int failure, armed;

/* failure_ 0: killed at the target, after keep_ bytes of it. Else: that errno, times_ times from the target on; of the first
 * write keep_ bytes are taken, as by a disk that becomes full in the middle of it. */
void effects_arm(const char *prefix_, long target_, long keep_, int failure_, long times_)
{
    snprintf(prefix, sizeof prefix, "%s", prefix_);
    count = 0;
    target = target_;
    keep = keep_;
    failure = failure_;
    times = times_;
    armed = 1;
}

void effects_disarm(void) { armed = 0; }
long effects_count(void) { return count; }
int effects_kind(long i) { return i < MAX_EFFECTS ? effects[i].kind : 0; }
long effects_size(long i) { return i < MAX_EFFECTS ? effects[i].size : 0; }

static _Noreturn void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int below(const char *path)
{
    size_t n = strlen(prefix);
    return strncmp(path, prefix, n) == 0 && (path[n] == '/' || path[n] == 0);
}

static int absolute(int folder, const char *path, char *found, size_t size)
{
    char link[64], base[4096];
    ssize_t n;
    if (path[0] == '/') {
        snprintf(found, size, "%s", path);
        return 1;
    }
    if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    n = readlink(link, base, sizeof base - 1);
    if (n <= 0) return 0;
    base[n] = 0;
    return snprintf(found, size, "%s/%s", base, path) < (int)size;
}

static int ours(int folder, const char *path)
{
    char found[8192];
    return armed && absolute(folder, path, found, sizeof found) && below(found);
}

static int ours_fd(int fd)
{
    char link[64], found[4096];
    ssize_t n;
    if (!armed) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, found, sizeof found - 1);
    if (n <= 0) return 0;
    found[n] = 0;
    return below(found);
}

enum verdict { GO, FAIL, SHORT, DIE };

static enum verdict next(enum kind kind, long size)
{
    long i = count++;
    if (i < MAX_EFFECTS) {
        effects[i].kind = (char)kind;
        effects[i].size = size;
    }
    if (i < target || target < 0) return GO;
    if (!failure) {
        if (i > target) return GO; /* cannot be: we would be dead */
        return DIE;
    }
    if (i >= target + times) return GO;
    if (i == target && kind == WRITE && keep > 0 && keep < size) return SHORT;
    errno = failure;
    return FAIL;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

/* A whole effect: it happens or it does not. */
#define WHOLE(kind, call) \
    switch (next(kind, 0)) { \
    case DIE: if (keep > 0) (void)!(long)(call); die(); \
    case FAIL: return -1; \
    default: return call; \
    }

#define DATA(call_of) \
    switch (next(WRITE, (long)size)) { \
    case DIE: if (keep > 0) { size_t n = (size_t)keep < size ? (size_t)keep : size; (void)!call_of(n); } die(); \
    case SHORT: return call_of((size_t)keep); \
    case FAIL: return -1; \
    default: return call_of(size); \
    }

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(ssize_t, write, int, const void *, size_t);
    if (!ours_fd(fd)) return real(fd, data, size);
#define CALL(n) real(fd, data, (n))
    DATA(CALL)
#undef CALL
}

#define PWRITE(name) \
    ssize_t name(int fd, const void *data, size_t size, off_t at) \
    { \
        REAL(ssize_t, name, int, const void *, size_t, off_t); \
        if (!ours_fd(fd)) return real(fd, data, size, at); \
        DATA(PCALL) \
    }
#define PCALL(n) real(fd, data, (n), at)
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t writev(int fd, const struct iovec *parts, int many)
{
    REAL(ssize_t, writev, int, const struct iovec *, int);
    if (!ours_fd(fd)) return real(fd, parts, many);
    size_t size = 0;
    for (int i = 0; i < many; i++) size += parts[i].iov_len;
    char *whole = malloc(size ? size : 1), *at = whole;
    if (!whole) { errno = ENOMEM; return -1; }
    for (int i = 0; i < many; i++) at = (char *)memcpy(at, parts[i].iov_base, parts[i].iov_len) + parts[i].iov_len;
    armed = 0; /* counted here, not once more in write */
    ssize_t done = -1;
    switch (next(WRITE, (long)size)) {
    case DIE: if (keep > 0) (void)!write(fd, whole, (size_t)keep < size ? (size_t)keep : size); die();
    case SHORT: done = write(fd, whole, (size_t)keep); break;
    case FAIL: break;
    default: done = write(fd, whole, size);
    }
    int error = errno;
    armed = 1;
    free(whole);
    errno = error;
    return done;
}

#define TRUNCATES(name) \
    int name(int fd, off_t size) \
    { \
        REAL(int, name, int, off_t); \
        if (!ours_fd(fd)) return real(fd, size); \
        WHOLE(TRUNCATE, real(fd, size)) \
    }
TRUNCATES(ftruncate)
TRUNCATES(ftruncate64)

#define RESERVES(name) \
    int name(int fd, off_t at, off_t size) \
    { \
        REAL(int, name, int, off_t, off_t); \
        if (!ours_fd(fd)) return real(fd, at, size); \
        switch (next(RESERVE, 0)) { \
        case DIE: if (keep > 0) (void)!real(fd, at, size); die(); \
        case FAIL: return errno; /* this call's way to say it */ \
        default: return real(fd, at, size); \
        } \
    }
RESERVES(posix_fallocate)
RESERVES(posix_fallocate64)

#define SYNCS(name) \
    int name(int fd) \
    { \
        REAL(int, name, int); \
        if (!ours_fd(fd)) return real(fd); \
        WHOLE(SYNC, real(fd)) \
    }
SYNCS(fsync)
SYNCS(fdatasync)

int rename(const char *from, const char *to)
{
    REAL(int, rename, const char *, const char *);
    if (!ours(AT_FDCWD, from) && !ours(AT_FDCWD, to)) return real(from, to);
    WHOLE(RENAME, real(from, to))
}

int renameat(int from_folder, const char *from, int to_folder, const char *to)
{
    REAL(int, renameat, int, const char *, int, const char *);
    if (!ours(from_folder, from) && !ours(to_folder, to)) return real(from_folder, from, to_folder, to);
    WHOLE(RENAME, real(from_folder, from, to_folder, to))
}

int unlink(const char *path)
{
    REAL(int, unlink, const char *);
    if (!ours(AT_FDCWD, path)) return real(path);
    WHOLE(UNLINK, real(path))
}

int unlinkat(int folder, const char *path, int flags)
{
    REAL(int, unlinkat, int, const char *, int);
    if (!ours(folder, path)) return real(folder, path, flags);
    WHOLE(UNLINK, real(folder, path, flags))
}

int mkdir(const char *path, mode_t mode)
{
    REAL(int, mkdir, const char *, mode_t);
    if (!ours(AT_FDCWD, path)) return real(path, mode);
    WHOLE(MKDIR, real(path, mode))
}

int mkdirat(int folder, const char *path, mode_t mode)
{
    REAL(int, mkdirat, int, const char *, mode_t);
    if (!ours(folder, path)) return real(folder, path, mode);
    WHOLE(MKDIR, real(folder, path, mode))
}

/* Only an open that makes or empties a file has an effect. */
static int changes(int folder, const char *path, int flags)
{
    struct stat found;
    if (!(flags & (O_CREAT | O_TRUNC)) || !ours(folder, path)) return 0;
    return fstatat(folder, path, &found, AT_SYMLINK_NOFOLLOW) != 0 || ((flags & O_TRUNC) && found.st_size > 0);
}

#define MODE \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

#define OPENS(name) \
    int name(const char *path, int flags, ...) \
    { \
        REAL(int, name, const char *, int, ...); \
        MODE \
        if (!changes(AT_FDCWD, path, flags)) return real(path, flags, mode); \
        WHOLE(CREATE, real(path, flags, mode)) \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name) \
    int name(int folder, const char *path, int flags, ...) \
    { \
        REAL(int, name, int, const char *, int, ...); \
        MODE \
        if (!changes(folder, path, flags)) return real(folder, path, flags, mode); \
        WHOLE(CREATE, real(folder, path, flags, mode)) \
    }
OPENS_AT(openat)
OPENS_AT(openat64)
