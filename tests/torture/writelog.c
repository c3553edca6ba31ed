/* Preloaded into a program that writes to a disk: notes each write and each fsync in the file WRITE_LOG, in order, so
 * that the disk can be shown as it was at any moment. A note is three numbers of 64 bits, then the bytes written:
 *
 *     what ('W' write, 'S' fsync)   offset   length
 */

#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

static ssize_t next_write(int file, const void *bytes, size_t length) {
    static ssize_t (*next)(int, const void *, size_t);
    if (!next)
        next = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    return next(file, bytes, length);
}

static void put(int log, const void *bytes, size_t length) {
    if (next_write(log, bytes, length) != (ssize_t)length)
        abort();
}

static void note(char what, off_t offset, const void *bytes, size_t length) {
    static int log = -1;
    const int64_t head[] = {what, offset, (int64_t)length};
    if (log < 0 && (log = open(getenv("WRITE_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0600)) < 0)
        abort();
    put(log, head, sizeof head);
    put(log, bytes, length);
}

ssize_t write(int file, const void *bytes, size_t length) {
    if (file > STDERR_FILENO)
        note('W', lseek(file, 0, SEEK_CUR), bytes, length);
    return next_write(file, bytes, length);
}

ssize_t pwrite64(int file, const void *bytes, size_t length, off64_t offset) {
    static ssize_t (*next)(int, const void *, size_t, off64_t);
    if (!next)
        next = (ssize_t(*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    note('W', offset, bytes, length);
    return next(file, bytes, length, offset);
}

int fsync(int file) {
    static int (*next)(int);
    if (!next)
        next = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    const int result = next(file);
    note('S', 0, "", 0);
    return result;
}
