/* Writes down what a process does to the names and the durable contents of files below a folder. For LD_PRELOAD.

   One line a call that succeeded, fields parted by tabs: its name, then paths. What `fsync` and `fdatasync` made durable
   of a file is copied beside the journal, under the number of the line. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static char folder[PATH_MAX], journal_path[PATH_MAX];
static FILE *journal;
static int lines;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* the journal has the order of the calls */

static void say(const char *name, const char *path, const char *other) {
    fprintf(journal, "%s\t%s\t%s\n", name, path, other);
    fflush(journal);
    lines++;
}

void disk_journal_begin(const char *below, const char *path) {
    snprintf(journal_path, sizeof journal_path, "%s", path);
    journal = fopen(path, "we");
    snprintf(folder, sizeof folder, "%s/", below);
}
void disk_journal_mark(const char *what) {
    pthread_mutex_lock(&lock);
    say("mark", what, "");
    pthread_mutex_unlock(&lock);
}
void disk_journal_end(void) { folder[0] = 0; }

static int ours(const char *path) {
    size_t length = strlen(folder);
    return length && (!strncmp(path, folder, length) || (!strncmp(path, folder, length - 1) && !path[length - 1]));
}

/* The absolute path of what a call names. Whether it is below our folder. */
static int name_of(int fd, const char *path, char *found) {
    if (!folder[0] || !path) return 0;
    if (path[0] == '/' || fd == AT_FDCWD) {
        snprintf(found, PATH_MAX, "%s", path);
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, found, PATH_MAX - 1);
        if (length < 0) return 0;
        snprintf(found + length, PATH_MAX - length, path[0] ? "/%s" : "%s", path);
    }
    return ours(found);
}

static int exists(const char *path) {
    struct stat status;
    return !lstat(path, &status);
}

static int opened(int fd, const char *path, int flags, int (*really)(void *), void *call) {
    char name[PATH_MAX];
    if (!(flags & O_CREAT) || !name_of(fd, path, name)) return really(call);
    pthread_mutex_lock(&lock);
    int before = exists(name), result = really(call);
    if (result >= 0 && !before) say("create", name, "");
    pthread_mutex_unlock(&lock);
    return result;
}

struct call {
    void *real;
    int fd, flags;
    const char *path;
    mode_t access;
};
static int call_open(void *c) {
    struct call *call = c;
    return ((int (*)(const char *, int, ...))call->real)(call->path, call->flags, call->access);
}
static int call_openat(void *c) {
    struct call *call = c;
    return ((int (*)(int, const char *, int, ...))call->real)(call->fd, call->path, call->flags, call->access);
}
#define ACCESS                                                                                                         \
    va_list more;                                                                                                      \
    va_start(more, flags);                                                                                             \
    mode_t access = va_arg(more, mode_t);                                                                              \
    va_end(more)
#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        ACCESS;                                                                                                        \
        REAL(name);                                                                                                    \
        struct call call = {real, AT_FDCWD, flags, path, access};                                                      \
        return opened(AT_FDCWD, path, flags, call_open, &call);                                                        \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                                                                                   \
    int name(int fd, const char *path, int flags, ...) {                                                               \
        ACCESS;                                                                                                        \
        REAL(name);                                                                                                    \
        struct call call = {real, fd, flags, path, access};                                                            \
        return opened(fd, path, flags, call_openat, &call);                                                            \
    }
OPENAT(openat)
OPENAT(openat64)

static void copy(int fd) {
    char link[64], target[PATH_MAX + 16], buffer[65536];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    snprintf(target, sizeof target, "%s.%d", journal_path, lines);
    FILE *in = fopen(link, "re"), *out = fopen(target, "we");
    size_t some;
    while (in && (some = fread(buffer, 1, sizeof buffer, in))) fwrite(buffer, 1, some, out);
    if (in) fclose(in);
    fclose(out);
}

#define SYNC(name)                                                                                                     \
    int name(int fd) {                                                                                                 \
        REAL(name);                                                                                                    \
        char path[PATH_MAX];                                                                                           \
        struct stat status;                                                                                            \
        if (!name_of(fd, "", path)) return real(fd);                                                                   \
        pthread_mutex_lock(&lock);                                                                                     \
        int result = real(fd);                                                                                         \
        if (!result && !fstat(fd, &status)) {                                                                          \
            if (S_ISREG(status.st_mode)) copy(fd);                                                                     \
            say(S_ISDIR(status.st_mode) ? "sync folder" : "sync", path, "");                                           \
        }                                                                                                              \
        pthread_mutex_unlock(&lock);                                                                                   \
        return result;                                                                                                 \
    }
SYNC(fsync)
SYNC(fdatasync)

#define ONE(name, what, fd, path, arguments, ...)                                                                      \
    int name arguments {                                                                                               \
        REAL(name);                                                                                                    \
        char a[PATH_MAX];                                                                                              \
        if (!name_of(fd, path, a)) return real(__VA_ARGS__);                                                           \
        pthread_mutex_lock(&lock);                                                                                     \
        int result = real(__VA_ARGS__);                                                                                \
        if (!result) say(what, a, "");                                                                                 \
        pthread_mutex_unlock(&lock);                                                                                   \
        return result;                                                                                                 \
    }
ONE(unlink, "remove", AT_FDCWD, path, (const char *path), path)
ONE(rmdir, "remove", AT_FDCWD, path, (const char *path), path)
ONE(unlinkat, "remove", fd, path, (int fd, const char *path, int flags), fd, path, flags)
ONE(mkdir, "mkdir", AT_FDCWD, path, (const char *path, mode_t access), path, access)
ONE(mkdirat, "mkdir", fd, path, (int fd, const char *path, mode_t access), fd, path, access)

#define TWO(name, what, fd, path, other, new, arguments, ...)                                                          \
    int name arguments {                                                                                               \
        REAL(name);                                                                                                    \
        char a[PATH_MAX], b[PATH_MAX];                                                                                 \
        if (!name_of(fd, path, a) || !name_of(other, new, b)) return real(__VA_ARGS__);                                \
        pthread_mutex_lock(&lock);                                                                                     \
        int result = real(__VA_ARGS__);                                                                                \
        if (!result) say(what, a, b);                                                                                  \
        pthread_mutex_unlock(&lock);                                                                                   \
        return result;                                                                                                 \
    }
TWO(rename, "rename", AT_FDCWD, path, AT_FDCWD, new, (const char *path, const char *new), path, new)
TWO(renameat, "rename", fd, path, other, new, (int fd, const char *path, int other, const char *new), fd, path, other,
    new)
TWO(renameat2, flags & RENAME_EXCHANGE ? "exchange" : "rename", fd, path, other, new,
    (int fd, const char *path, int other, const char *new, unsigned flags), fd, path, other, new, flags)
TWO(link, "link", AT_FDCWD, path, AT_FDCWD, new, (const char *path, const char *new), path, new)
