/* Lets the Nth call of this process that reaches the disk fail, whichever library makes it. For LD_PRELOAD.

   Counted are calls on files below a folder. `mode`: EIO; ENOSPC; or a short write, after which the disk is full. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MODE_EIO, MODE_ENOSPC, MODE_SHORT };

static char folder[PATH_MAX];
static atomic_long calls;
static long fail_at;
static int mode;
static const char *failed = "";
static atomic_int full; /* after a short write, the next write fails */

void disk_faults_arm(const char *path, long number, int how) {
    snprintf(folder, sizeof folder, "%s", path);
    atomic_store(&calls, 0);
    fail_at = number;
    mode = how;
}
void disk_faults_disarm(void) { folder[0] = 0; }
const char *disk_faults_failed(void) { return failed; }

static int below(const char *path) { return folder[0] && path && !strncmp(path, folder, strlen(folder)); }

static int below_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

static int at(int fd, const char *path) { return path[0] == '/' ? below(path) : below_fd(fd); }

static int due(const char *name) {
    if (atomic_fetch_add(&calls, 1) + 1 != fail_at) return 0;
    failed = name;
    return 1;
}

/* Whether this call, which is no write, is to fail. */
static int fails(const char *name, int ours) {
    if (!ours || mode == MODE_SHORT || !due(name)) return 0;
    errno = mode == MODE_ENOSPC ? ENOSPC : EIO;
    return 1;
}

static int fails_reading(const char *name, int ours) { return mode == MODE_EIO && fails(name, ours); }

/* How many bytes a write of so many is to be of; -1 for none, and an error. */
static ssize_t allowed(const char *name, int ours, size_t bytes) {
    if (!ours) return (ssize_t)bytes;
    if (atomic_exchange(&full, 0)) {
        errno = ENOSPC;
        return -1;
    }
    if (!due(name)) return (ssize_t)bytes;
    if (mode == MODE_SHORT && bytes > 1) {
        atomic_store(&full, 1);
        return (ssize_t)(bytes / 2);
    }
    errno = mode == MODE_EIO ? EIO : ENOSPC;
    return -1;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode_t access = va_arg(more, mode_t);                                                                          \
        va_end(more);                                                                                                  \
        if (fails("open", below(path))) return -1;                                                                     \
        REAL(name);                                                                                                    \
        return real(path, flags, access);                                                                              \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                   \
    int name(int fd, const char *path, int flags, ...) {                                                               \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode_t access = va_arg(more, mode_t);                                                                          \
        va_end(more);                                                                                                  \
        if (fails("open", at(fd, path))) return -1;                                                                    \
        REAL(name);                                                                                                    \
        return real(fd, path, flags, access);                                                                          \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *bytes, size_t count) {
    REAL(write);
    ssize_t some = allowed("write", below_fd(fd), count);
    return some < 0 ? -1 : real(fd, bytes, (size_t)some);
}

#define PWRITE(name, offset_type)                                                                                      \
    ssize_t name(int fd, const void *bytes, size_t count, offset_type offset) {                                        \
        REAL(name);                                                                                                    \
        ssize_t some = allowed("pwrite", below_fd(fd), count);                                                         \
        return some < 0 ? -1 : real(fd, bytes, (size_t)some, offset);                                                  \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    if (allowed("writev", below_fd(fd), 1) < 0) return -1;
    return real(fd, parts, count);
}

#define SENDFILE(name, offset_type)                                                                                    \
    ssize_t name(int out, int in, offset_type *offset, size_t count) {                                                 \
        REAL(name);                                                                                                    \
        ssize_t some = allowed("sendfile", below_fd(out), count);                                                      \
        return some < 0 ? -1 : real(out, in, offset, (size_t)some);                                                    \
    }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t count, unsigned flags) {
    REAL(copy_file_range);
    ssize_t some = allowed("copy_file_range", below_fd(out), count);
    return some < 0 ? -1 : real(in, from, out, to, (size_t)some, flags);
}

ssize_t read(int fd, void *bytes, size_t count) {
    REAL(read);
    return fails_reading("read", below_fd(fd)) ? -1 : real(fd, bytes, count);
}
ssize_t pread(int fd, void *bytes, size_t count, off_t offset) {
    REAL(pread);
    return fails_reading("pread", below_fd(fd)) ? -1 : real(fd, bytes, count, offset);
}
ssize_t pread64(int fd, void *bytes, size_t count, off64_t offset) {
    REAL(pread64);
    return fails_reading("pread", below_fd(fd)) ? -1 : real(fd, bytes, count, offset);
}

#define OF_FD(name, arguments, ...)                                                                                    \
    int name arguments {                                                                                               \
        REAL(name);                                                                                                    \
        return fails(#name, below_fd(fd)) ? -1 : real(__VA_ARGS__);                                                    \
    }
OF_FD(fsync, (int fd), fd)
OF_FD(fdatasync, (int fd), fd)
OF_FD(ftruncate, (int fd, off_t length), fd, length)
OF_FD(ftruncate64, (int fd, off64_t length), fd, length)

#define OF_PATH(name, ours, arguments, ...)                                                                            \
    int name arguments {                                                                                               \
        REAL(name);                                                                                                    \
        return fails(#name, ours) ? -1 : real(__VA_ARGS__);                                                            \
    }
OF_PATH(rename, below(path), (const char *path, const char *new), path, new)
OF_PATH(renameat, at(a, path), (int a, const char *path, int b, const char *new), a, path, b, new)
OF_PATH(renameat2, at(a, path), (int a, const char *path, int b, const char *new, unsigned f), a, path, b, new, f)
OF_PATH(unlink, below(path), (const char *path), path)
OF_PATH(unlinkat, at(fd, path), (int fd, const char *path, int flags), fd, path, flags)
OF_PATH(mkdir, below(path), (const char *path, mode_t access), path, access)
OF_PATH(mkdirat, at(fd, path), (int fd, const char *path, mode_t access), fd, path, access)
OF_PATH(rmdir, below(path), (const char *path), path)

DIR *opendir(const char *path) {
    REAL(opendir);
    return fails("opendir", below(path)) ? NULL : real(path);
}
DIR *fdopendir(int fd) {
    REAL(fdopendir);
    return fails("fdopendir", below_fd(fd)) ? NULL : real(fd);
}
