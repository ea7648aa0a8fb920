/* Lets the N-th call of one system function on files under one folder fail, or kills the process there.
 *
 * Preloaded. FAULT_CALL names the function, FAULT_NUMBER says which call, FAULT_ERRNO what it fails with (0: SIGKILL
 * before the call; -1: only half of what was asked for is transferred; -2: a read brings nothing, as at the end of a
 * file; -3: SIGSTOP before the call; -4: FAULT_RUN is run by the shell, and then the call is made), FAULT_FOLDER where,
 * FAULT_LOG the file that gets the path if the call was reached. With FAULT_NO_RESERVE no space can be taken
 * beforehand. If FAULT_TRACE names a file, every call that changes something in the folder, or with FAULT_TRACE_ALL
 * every call, is appended to it: its name, a tab and the path. The folder itself counts as in the folder.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SHORT = -1, END = -2, STOP = -3, RUN = -4 };
static const char *call, *folder, *log_path, *trace_path;
static long wanted, code, seen;

/* Reads what to do from the environment; called again where that has changed since the process began. */
__attribute__((constructor)) void fault_arm(void) {
    folder = getenv("FAULT_FOLDER");
    log_path = getenv("FAULT_LOG");
    if (!folder || !log_path || !getenv("FAULT_CALL")) return;
    wanted = atol(getenv("FAULT_NUMBER"));
    code = atol(getenv("FAULT_ERRNO"));
    call = getenv("FAULT_CALL");
    trace_path = getenv("FAULT_TRACE");
}

static void note(const char *path) {
    int fd = syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    syscall(SYS_write, fd, path, strlen(path));
    syscall(SYS_close, fd);
}

/* Calls that change nothing, and are not traced. */
static const char *harmless[] = {"open", "read", "pread", "close", "flock", "stat", "statvfs", "opendir", "readdir",
                                 "closedir", "access", "mmap", "fadvise", "probe", NULL};

static void trace(const char *name, const char *path) {
    char line[2 * PATH_MAX + 64];
    for (const char **other = harmless; *other && !getenv("FAULT_TRACE_ALL"); other++)
        if (!strcmp(name, *other)) return;
    int length = snprintf(line, sizeof line, "%s\t%s\n", name, path);
    int fd = syscall(SYS_openat, AT_FDCWD, trace_path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    syscall(SYS_write, fd, line, length);
    syscall(SYS_close, fd);
}

/* Has the shell do what FAULT_RUN says, without this library in the way, and waits for it. */
static void run(void) {
    pid_t child;
    char *arguments[] = {"sh", "-c", getenv("FAULT_RUN"), NULL}, *environment[] = {"PATH=/usr/bin:/bin", NULL};
    if (!posix_spawn(&child, "/bin/sh", NULL, NULL, arguments, environment))
        while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {}
}

/* Whether the call on `fd` (and `path`, if there is one) is the chosen one. */
static int chosen(const char *name, int fd, const char *path) {
    char full[2 * PATH_MAX], link[64];
    ssize_t length = 0;
    if (!call || (!trace_path && strcmp(call, name))) return 0;
    if (!path || path[0] != '/') {
        if (fd == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        length = readlink(link, full, PATH_MAX);
        if (length < 0) return 0;
        full[length] = 0;
    }
    if (path) snprintf(full + length, PATH_MAX, "%s%s", length ? "/" : "", path);
    size_t inside = strlen(folder);
    if (strncmp(full, folder, inside) || (full[inside] && full[inside] != '/')) return 0;
    if (trace_path) trace(name, full);
    if (strcmp(call, name)) return 0;
    if (__atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST) != wanted) return 0;
    note(full);
    if (code == 0 || code == STOP) syscall(SYS_kill, getpid(), code ? SIGSTOP : SIGKILL);
    if (code == RUN) run();
    return code != RUN;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAIL do { errno = (int)code; return -1; } while (0)

#define OPEN(name)                                                       \
    int name(const char *path, int flags, ...) {                         \
        va_list more; va_start(more, flags);                             \
        mode_t mode = (flags & O_CREAT) ? va_arg(more, mode_t) : 0;      \
        va_end(more);                                                    \
        REAL(name);                                                      \
        if (chosen("open", AT_FDCWD, path) && code > 0) FAIL;            \
        return real(path, flags, mode);                                  \
    }
#define OPENAT(name)                                                     \
    int name(int fd, const char *path, int flags, ...) {                 \
        va_list more; va_start(more, flags);                             \
        mode_t mode = (flags & O_CREAT) ? va_arg(more, mode_t) : 0;      \
        va_end(more);                                                    \
        REAL(name);                                                      \
        if (chosen("open", fd, path) && code > 0) FAIL;                  \
        return real(fd, path, flags, mode);                              \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

#define ON_FD(name, kind, parameters, arguments)                         \
    int name parameters {                                                \
        REAL(name);                                                      \
        if (chosen(kind, fd, NULL) && code > 0) FAIL;                    \
        return real arguments;                                           \
    }
ON_FD(fsync, "fsync", (int fd), (fd))
ON_FD(fdatasync, "fdatasync", (int fd), (fd))
ON_FD(ftruncate, "ftruncate", (int fd, off_t size), (fd, size))
ON_FD(flock, "flock", (int fd, int operation), (fd, operation))
ON_FD(fstat, "stat", (int fd, struct stat *found), (fd, found))
ON_FD(fstat64, "stat", (int fd, struct stat64 *found), (fd, found))
ON_FD(fchmod, "chmod", (int fd, mode_t mode), (fd, mode))
ON_FD(fstatvfs, "statvfs", (int fd, struct statvfs *found), (fd, found))
ON_FD(fstatvfs64, "statvfs", (int fd, struct statvfs64 *found), (fd, found))
ON_FD(ftruncate64, "ftruncate", (int fd, off64_t size), (fd, size))

#define RESERVE(name, type)                                              \
    int name(int fd, type offset, type size) {                           \
        REAL(name);                                                      \
        if (chosen("fallocate", fd, NULL) && code > 0) return (int)code; \
        if (getenv("FAULT_NO_RESERVE")) return EOPNOTSUPP;               \
        return real(fd, offset, size);                                   \
    }
RESERVE(posix_fallocate, off_t) RESERVE(posix_fallocate64, off64_t)

#define ADVISE(name, type)                                               \
    int name(int fd, type offset, type size, int advice) {               \
        REAL(name);                                                      \
        if (chosen("fadvise", fd, NULL) && code > 0) return (int)code;   \
        return real(fd, offset, size, advice);                           \
    }
ADVISE(posix_fadvise, off_t) ADVISE(posix_fadvise64, off64_t)

#define MAP(name, type)                                                                  \
    void *name(void *address, size_t size, int access, int flags, int fd, type offset) { \
        REAL(name);                                                                      \
        if (fd >= 0 && chosen("mmap", fd, NULL) && code > 0) { errno = (int)code; return MAP_FAILED; } \
        return real(address, size, access, flags, fd, offset);                           \
    }
MAP(mmap, off_t) MAP(mmap64, off64_t)

#define COPY(name, type)                                                 \
    ssize_t name(int fd, int from, type *offset, size_t size) {          \
        REAL(name);                                                      \
        if (chosen("write", fd, NULL)) {                                 \
            if (code > 0) FAIL;                                          \
            if (size > 1 && code == SHORT) size /= 2;                    \
        }                                                                \
        return real(fd, from, offset, size);                             \
    }
COPY(sendfile, off_t) COPY(sendfile64, off64_t)

ssize_t copy_file_range(int from, off64_t *begin, int fd, off64_t *offset, size_t size, unsigned flags) {
    REAL(copy_file_range);
    if (chosen("write", fd, NULL) && code > 0) FAIL;
    return real(from, begin, fd, offset, size, flags);
}

int close(int fd) { /* the descriptor is gone even if the call fails, as on Linux */
    REAL(close);
    int fails = chosen("close", fd, NULL) && code > 0, result = real(fd);
    if (fails) FAIL;
    return result;
}

#define TRANSFER(name, kind, buffer)                                     \
    ssize_t name(int fd, buffer data, size_t size) {                     \
        REAL(name);                                                      \
        if (code == END && !strcmp(kind, "read")) {                      \
            ssize_t count = real(fd, data, size);                        \
            return count > 0 && chosen(kind, fd, NULL) ? 0 : count;      \
        }                                                                \
        if (chosen(kind, fd, NULL)) {                                    \
            if (code > 0) FAIL;                                          \
            if (size > 1 && code == SHORT) size /= 2;                    \
        }                                                                \
        return real(fd, data, size);                                     \
    }
TRANSFER(write, "write", const void *) TRANSFER(read, "read", void *)

#define PLACED(name, kind, buffer, type)                                 \
    ssize_t name(int fd, buffer data, size_t size, type offset) {        \
        REAL(name);                                                      \
        if (chosen(kind, fd, NULL)) {                                    \
            if (code > 0) FAIL;                                          \
            if (code == END) return 0;                                   \
            if (size > 1 && code == SHORT) size /= 2;                    \
        }                                                                \
        return real(fd, data, size, offset);                             \
    }
PLACED(pwrite, "pwrite", const void *, off_t) PLACED(pwrite64, "pwrite", const void *, off64_t)
PLACED(pread, "pread", void *, off_t) PLACED(pread64, "pread", void *, off64_t)

/* Python passes one buffer. */
#define VECTOR(name, kind, type, parameter, argument)                                \
    ssize_t name(int fd, const struct iovec *parts, int count, type offset parameter) { \
        REAL(name);                                                                  \
        if (chosen(kind, fd, NULL)) {                                                \
            if (code > 0) FAIL;                                                      \
            if (code == END) return 0;                                               \
            if (code != SHORT) return real(fd, parts, count, offset argument);       \
            struct iovec half = {parts[0].iov_base, parts[0].iov_len / 2 + (parts[0].iov_len == 1)}; \
            return real(fd, &half, 1, offset argument);                              \
        }                                                                            \
        return real(fd, parts, count, offset argument);                              \
    }
#define COMMA ,
#define READ flags ? "probe" : "pread" /* a flagged call only asks what is in the page cache */
VECTOR(preadv, "pread", off_t, , ) VECTOR(preadv64, "pread", off64_t, , )
VECTOR(preadv2, READ, off_t, COMMA int flags, COMMA flags)
VECTOR(preadv64v2, READ, off64_t, COMMA int flags, COMMA flags)
VECTOR(pwritev, "pwrite", off_t, , ) VECTOR(pwritev64, "pwrite", off64_t, , )
VECTOR(pwritev2, "pwrite", off_t, COMMA int flags, COMMA flags)
VECTOR(pwritev64v2, "pwrite", off64_t, COMMA int flags, COMMA flags)

#define ON_PATH(name, kind, parameters, arguments, fd)                   \
    int name parameters {                                                \
        REAL(name);                                                      \
        if (chosen(kind, fd, path) && code > 0) FAIL;                    \
        return real arguments;                                           \
    }
ON_PATH(rename, "rename", (const char *path, const char *to), (path, to), AT_FDCWD)
ON_PATH(renameat, "rename", (int fd, const char *path, int other, const char *to), (fd, path, other, to), fd)
ON_PATH(renameat2, flags ? "exchange" : "rename",
        (int fd, const char *path, int other, const char *to, unsigned flags), (fd, path, other, to, flags), fd)
ON_PATH(link, "link", (const char *path, const char *to), (path, to), AT_FDCWD)
ON_PATH(linkat, "link", (int fd, const char *path, int other, const char *to, int flags),
        (fd, path, other, to, flags), fd)
ON_PATH(truncate, "ftruncate", (const char *path, off_t size), (path, size), AT_FDCWD)
ON_PATH(truncate64, "ftruncate", (const char *path, off64_t size), (path, size), AT_FDCWD)
ON_PATH(chmod, "chmod", (const char *path, mode_t mode), (path, mode), AT_FDCWD)
ON_PATH(fchmodat, "chmod", (int fd, const char *path, mode_t mode, int flags), (fd, path, mode, flags), fd)
ON_PATH(access, "access", (const char *path, int mode), (path, mode), AT_FDCWD)
ON_PATH(faccessat, "access", (int fd, const char *path, int mode, int flags), (fd, path, mode, flags), fd)
ON_PATH(unlink, "unlink", (const char *path), (path), AT_FDCWD)
ON_PATH(unlinkat, "unlink", (int fd, const char *path, int flags), (fd, path, flags), fd)
ON_PATH(mkdir, "mkdir", (const char *path, mode_t mode), (path, mode), AT_FDCWD)
ON_PATH(mkdirat, "mkdir", (int fd, const char *path, mode_t mode), (fd, path, mode), fd)
ON_PATH(rmdir, "rmdir", (const char *path), (path), AT_FDCWD)
ON_PATH(stat, "stat", (const char *path, struct stat *found), (path, found), AT_FDCWD)
ON_PATH(stat64, "stat", (const char *path, struct stat64 *found), (path, found), AT_FDCWD)
ON_PATH(lstat, "stat", (const char *path, struct stat *found), (path, found), AT_FDCWD)
ON_PATH(lstat64, "stat", (const char *path, struct stat64 *found), (path, found), AT_FDCWD)
ON_PATH(fstatat, "stat", (int fd, const char *path, struct stat *found, int flags), (fd, path, found, flags), fd)
ON_PATH(fstatat64, "stat", (int fd, const char *path, struct stat64 *found, int flags), (fd, path, found, flags), fd)
ON_PATH(statvfs, "statvfs", (const char *path, struct statvfs *found), (path, found), AT_FDCWD)
ON_PATH(statvfs64, "statvfs", (const char *path, struct statvfs64 *found), (path, found), AT_FDCWD)

/* Other languages than C ask about an open file by an empty path. */
int statx(int fd, const char *path, int flags, unsigned mask, struct statx *found) {
    REAL(statx);
    if (chosen("stat", fd, *path ? path : NULL) && code > 0) FAIL;
    return real(fd, path, flags, mask, found);
}

DIR *opendir(const char *path) {
    REAL(opendir);
    if (chosen("opendir", AT_FDCWD, path) && code > 0) { errno = (int)code; return NULL; }
    return real(path);
}
DIR *fdopendir(int fd) {
    REAL(fdopendir);
    if (chosen("opendir", fd, NULL) && code > 0) { errno = (int)code; return NULL; }
    return real(fd);
}

#define ENTRY(name, type)                                                                            \
    struct type *name(DIR *listed) {                                                                 \
        REAL(name);                                                                                  \
        if (chosen("readdir", dirfd(listed), NULL) && code > 0) { errno = (int)code; return NULL; }   \
        return real(listed);                                                                         \
    }
ENTRY(readdir, dirent) ENTRY(readdir64, dirent64)

int closedir(DIR *listed) { /* the descriptor is gone even if the call fails */
    REAL(closedir);
    int fails = chosen("closedir", dirfd(listed), NULL) && code > 0, result = real(listed);
    if (fails) FAIL;
    return result;
}
