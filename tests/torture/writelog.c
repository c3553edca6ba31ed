/* Preloaded into a program that writes to disks: notes each write and each flush in the file WRITE_LOG, in order, so that
 * a disk can be shown as it was at any moment. A note is four numbers of 64 bits, then the bytes written:
 *
 *     what ('W' write, 'S' flush)   inode   offset   length
 *
 * A write is noted before it is done, a flush when it is over.
 */

#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *path;

__attribute__((constructor)) static void begin(void) {
    if (!(path = getenv("WRITE_LOG")))
        abort();
}

/* Opened each time: LVM closes what is open when it begins. */
static void note(char what, int file, off_t offset, const void *bytes, size_t length) {
    struct stat status;
    if (fstat(file, &status))
        return; /* nor will it be written to */
    const int64_t head[] = {what, (int64_t)status.st_ino, offset, (int64_t)length};
    const struct iovec parts[] = {{(void *)(uintptr_t)head, sizeof head}, {(void *)(uintptr_t)bytes, length}};
    const int notes = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (notes < 0 || writev(notes, parts, 2) != (ssize_t)(sizeof head + length) || close(notes))
        abort();
}

ssize_t write(int file, const void *bytes, size_t length) {
    static ssize_t (*next)(int, const void *, size_t);
    if (!next)
        next = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    const off_t offset = file > STDERR_FILENO ? lseek(file, 0, SEEK_CUR) : -1;
    if (offset >= 0) /* a pipe has no place */
        note('W', file, offset, bytes, length);
    return next(file, bytes, length);
}

ssize_t pwrite64(int file, const void *bytes, size_t length, off64_t offset) {
    static ssize_t (*next)(int, const void *, size_t, off64_t);
    if (!next)
        next = (ssize_t(*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    note('W', file, offset, bytes, length);
    return next(file, bytes, length, offset);
}

int fsync(int file) {
    static int (*next)(int);
    if (!next)
        next = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    const int result = next(file);
    note('S', file, 0, "", 0);
    return result;
}

int fdatasync(int file) {
    static int (*next)(int);
    if (!next)
        next = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    const int result = next(file);
    note('S', file, 0, "", 0);
    return result;
}
