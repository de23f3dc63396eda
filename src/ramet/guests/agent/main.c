/* Start: one thread per virtio port, one per vsock connection. In a test: one unix socket, or one inherited stream. */
#define _GNU_SOURCE
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PORTS 8
#define VSOCK_PORT 5000
#define CONNECTIONS_MAX 64
#define PORT_WAIT_MS 10000

static int connections;

struct stream {
    int fd;
    bool serial, counted;
};

static void *serve(void *argument)
{
    struct stream stream = *(struct stream *)argument;
    free(argument);
    session_serve(stream.fd, stream.serial);
    if (stream.counted)
        __atomic_fetch_sub(&connections, 1, __ATOMIC_RELAXED);
    return NULL;
}

static bool start(void *(*run)(void *), void *argument)
{
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 * 1024);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    bool ok = pthread_create(&thread, &attributes, run, argument) == 0;
    pthread_attr_destroy(&attributes);
    return ok;
}

static void start_stream(int fd, bool serial, bool counted)
{
    struct stream *stream = malloc(sizeof *stream);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    if (stream)
        *stream = (struct stream){fd, serial, counted};
    if (!stream || !start(serve, stream)) {
        free(stream);
        close(fd);
        if (counted)
            __atomic_fetch_sub(&connections, 1, __ATOMIC_RELAXED);
    }
}

static void *accept_loop(void *argument)
{
    int listener = *(int *)argument;
    free(argument);
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) {
            if (errno != EINTR)
                usleep(10000); /* out of descriptors, or a transport that is being reset: it comes back */
            continue;
        }
        if (__atomic_add_fetch(&connections, 1, __ATOMIC_RELAXED) > CONNECTIONS_MAX) {
            __atomic_fetch_sub(&connections, 1, __ATOMIC_RELAXED);
            close(fd);
            continue;
        }
        start_stream(fd, false, true);
    }
    return NULL;
}

static bool start_accepting(int listener)
{
    int *argument = malloc(sizeof *argument);
    if (!argument)
        return false;
    *argument = listener;
    return start(accept_loop, argument);
}

static void start_vsock(void)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = VSOCK_PORT};
    int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0)
        return; /* this VMM has none: the virtio ports are the way in */
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 64) < 0 ||
        !start_accepting(listener))
        close(listener);
}

/* Is `entry` the virtio port called ramet.N? Its name is a file in sysfs. */
static int port_number(const char *entry)
{
    char path[300], name[32] = "";
    int number;
    char rest;
    snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t got = read(fd, name, sizeof name - 1);
    close(fd);
    name[got > 0 ? got : 0] = 0;
    if (sscanf(name, "ramet.%d%c", &number, &rest) < 1 || number < 0 || number >= PORTS)
        return -1;
    return number;
}

static int start_ports(bool started[PORTS])
{
    DIR *ports = opendir("/sys/class/virtio-ports");
    int count = 0;
    for (struct dirent *entry; ports && (entry = readdir(ports));) {
        char path[300];
        int number = port_number(entry->d_name);
        if (number < 0 || started[number])
            continue;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
        if (fd < 0)
            continue;
        started[number] = true;
        count++;
        start_stream(fd, true, false);
    }
    if (ports)
        closedir(ports);
    return count;
}

static int listen_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || strlen(path) >= sizeof address.sun_path)
        return -1;
    strcpy(address.sun_path, path);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 64) < 0) {
        close(listener);
        return -1;
    }
    return listener;
}

static int test_main(char **argv)
{
    /* ramet-agent --test ROOT unix PATH | ramet-agent --test ROOT stream FD */
    system_init(argv[2]);
    if (strcmp(argv[3], "stream") == 0) {
        int fd = atoi(argv[4]);
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
        session_serve(fd, true);
        return 0;
    }
    int listener = listen_unix(argv[4]);
    if (listener < 0 || !start_accepting(listener)) {
        perror(argv[4]);
        return 1;
    }
    for (;;)
        pause();
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc == 5 && strcmp(argv[1], "--test") == 0)
        return test_main(argv);
    if (argc != 1) {
        fprintf(stderr, "usage: ramet-agent (in a guest, without arguments)\n");
        return 2;
    }
    system_init(NULL);
    start_vsock();
    bool started[PORTS] = {false};
    int have = 0;
    for (int64_t end = now_ms() + PORT_WAIT_MS; have < PORTS && now_ms() < end;) {
        int more = start_ports(started); /* the driver may still be adding them */
        have += more;
        if (!more)
            usleep(2000);
    }
    for (;;)
        pause();
}
