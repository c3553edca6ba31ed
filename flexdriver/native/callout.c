/*
 * The FlexVolume driver as a native program: what the kubelet executes on a host that may have nothing but a kernel.
 *
 * It carries its arguments to the daemon and the daemon's answer back, and decides nothing. What it says when no daemon
 * answers, and all else that both sides must agree on, stands in contract/callout.py, which contract.h is made from.
 *
 * The kubelet reads stdout and stderr together as one JSON object and sets no time limit. So exactly one object is
 * printed, in time, whatever happens: one timer runs over everything that can wait, and when it ends, its handler prints
 * the answer that was prepared for then.
 */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "contract.h"

enum {
    MESSAGE_LIMIT = 1024,
    ESCAPE = sizeof "\\uXXXX" - 1,
    FRAME = 128, /* more than the JSON around a message, and the head of a request */
};

struct verb {
    const char *name;
    unsigned deadline; /* seconds */
};
static const struct verb verbs[] = VERBS;

struct text {
    size_t length;
    char bytes[MESSAGE_LIMIT * ESCAPE + FRAME];
};
static struct text when_late;
static bool is_init;

static void print(const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t written = write(STDOUT_FILENO, bytes, length);
        if (written < 0)
            return; /* nobody reads */
        bytes += written;
        length -= (size_t)written;
    }
}

/* The inside of a JSON string; returns its end. For bytes that are no ASCII see contract.callout.request. */
static char *escape(char *to, const char *from)
{
    static const char digits[] = "0123456789abcdef";
    for (; *from != '\0'; from++) {
        unsigned char byte = (unsigned char)*from;
        if (byte >= ' ' && byte < 0x7f && byte != '"' && byte != '\\') {
            *to++ = *from;
        } else {
            memcpy(to, byte < 0x80 ? "\\u00" : "\\udc", 4);
            to[4] = digits[byte >> 4];
            to[5] = digits[byte & 0xf];
            to += ESCAPE;
        }
    }
    return to;
}

/* An answer of our own, as it is printed: to init always the same, to other verbs a message, cut at MESSAGE_LIMIT. */
__attribute__((format(printf, 3, 0)))
static void compose(struct text *answer, const char *status, const char *format, va_list values)
{
    char message[MESSAGE_LIMIT];
    vsnprintf(message, sizeof message, format, values);
    char *end = answer->bytes;
    if (is_init)
        end = stpcpy(end, INIT_ANSWER "\n");
    else
        end = stpcpy(escape(stpcpy(end, status), message), ANSWER_END "\n");
    answer->length = (size_t)(end - answer->bytes);
}

__attribute__((format(printf, 2, 3)))
static void prepare_for_late(const char *status, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    compose(&when_late, status, format, values);
    va_end(values);
}

static void be_late(int signal)
{
    (void)signal;
    print(when_late.bytes, when_late.length);
    _exit(0);
}

/* The status goes out with exit code 0: the kubelet reads the object. */
__attribute__((format(printf, 2, 3), noreturn))
static void finish(const char *status, const char *format, ...)
{
    struct text answer;
    va_list values;
    alarm(0);
    va_start(values, format);
    compose(&answer, status, format, values);
    va_end(values);
    print(answer.bytes, answer.length);
    exit(0);
}

static void start_timer(const struct verb *verb)
{
    sigset_t late;
    prepare_for_late(FAILURE, BUSY, verb->name, verb->deadline);
    signal(SIGALRM, be_late);
    sigemptyset(&late);
    sigaddset(&late, SIGALRM);
    sigprocmask(SIG_UNBLOCK, &late, NULL);
    alarm(verb->deadline);
}

/* The whole request. NULL without memory. Nothing is freed here or closed later: the process ends with its call. */
static char *write_request(char **words, size_t *length)
{
    size_t room = FRAME;
    for (char **word = words; *word != NULL; word++)
        room += strlen(*word) * ESCAPE + sizeof "\"\", ";
    char *body = malloc(room), *request = malloc(room + FRAME);
    if (body == NULL || request == NULL)
        return NULL;
    char *end = stpcpy(body, "{\"argv\": [");
    for (char **word = words; *word != NULL; word++)
        end = stpcpy(escape(stpcpy(end, word == words ? "\"" : ", \""), *word), "\"");
    end = stpcpy(end, "]}");
    *length = (size_t)sprintf(request, REQUEST_HEAD "%s", (size_t)(end - body), body);
    return request;
}

/* Sends the request and reads all of the reply that fits. -1 and errno when that can't be done. */
static ssize_t exchange(const char *path, char **words, char *reply, size_t room)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length, got = 0;
    ssize_t piece;
    char *request = write_request(words, &length);
    int daemon = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (request == NULL || daemon < 0)
        return -1;
    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(address.sun_path, path);
    if (connect(daemon, (struct sockaddr *)&address, sizeof address) < 0)
        return -1;
    for (size_t sent = 0; sent < length; sent += (size_t)piece)
        if ((piece = send(daemon, request + sent, length - sent, MSG_NOSIGNAL)) < 0)
            return -1;
    for (; got < room && (piece = recv(daemon, reply + got, room - got, 0)) != 0; got += (size_t)piece)
        if (piece < 0)
            return -1;
    return (ssize_t)got;
}

static const char *after(const char *start, const char *text)
{
    size_t length = strlen(start);
    return strncmp(text, start, length) == 0 ? text + length : NULL;
}

/* Whether the text is an answer of contract.callout.answer, whole and to its end. */
static bool sensible(const char *text, const char *end)
{
    const char *at = after(SUCCESS, text);
    if (at == NULL && (at = after(FAILURE, text)) == NULL)
        return false;
    for (; *at >= ' ' && *at < 0x7f && *at != '"'; at++) {
        if (*at != '\\')
            continue;
        if (*++at == 'u') {
            if (strspn(at + 1, "0123456789abcdef") < 4)
                return false;
            at += 4;
        } else if (*at == '\0' || strchr("\"\\bfnrt", *at) == NULL) {
            return false;
        }
    }
    return strcmp(at, ANSWER_END) == 0 && at + strlen(ANSWER_END) == end;
}

int main(int count, char **argv)
{
    static char reply[ANSWER_LIMIT + 1];
    const struct verb *verb = NULL;
    const char *path = getenv(SOCKET_VARIABLE);

    if (count < 2)
        finish(FAILURE, NO_VERB);
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
        if (strcmp(argv[1], verbs[i].name) == 0)
            verb = &verbs[i];
    if (verb == NULL)
        finish(NOT_SUPPORTED, NOT_IMPLEMENTED, argv[1]);
    if (path == NULL || *path == '\0')
        path = SOCKET;

    is_init = strcmp(verb->name, INIT) == 0;
    start_timer(verb);
    ssize_t got = exchange(path, argv + 1, reply, ANSWER_LIMIT);
    if (got < 0 && (errno == ENOENT || errno == ECONNREFUSED))
        finish(FAILURE, AWAY, path, verb->name);
    if (got < 0)
        finish(FAILURE, BROKEN_OFF, verb->name, strerror(errno));

    const char *body = strstr(reply, "\r\n\r\n");
    if (body == NULL || !sensible(body + 4, reply + got)) {
        reply[strcspn(reply, "\r\n")] = '\0';
        finish(FAILURE, NO_SENSE, path, reply);
    }
    alarm(0);
    if (is_init)
        finish(SUCCESS, "%s", "");
    print(body + 4, (size_t)(reply + got - body - 4));
    return 0;
}
