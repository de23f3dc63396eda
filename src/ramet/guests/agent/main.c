/* The agent in its guest: virtio ports and vsock. */
#define _GNU_SOURCE
#include "files.h"
#include "guest.h"
#include "session.h"
#include "threads.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PORTS 8
#define VSOCK_PORT 5000
#define PORT_RUSH_MS 10000 /* while the guest boots */

static bool serve_vsock(void)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = VSOCK_PORT};
    int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0)
        return false; /* this VMM has none: the virtio ports are the way in */
    if (bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 64) == 0 &&
        serve_listener(listener))
        return true;
    close(listener);
    return false;
}

/* The N of a virtio port called ramet.N, or -1. Its name is a file in sysfs. */
static int port_number(const char *entry)
{
    char path[300], name[32] = "", rest;
    int number;
    snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t got = read(fd, name, sizeof name - 1);
    close(fd);
    name[got > 0 ? got : 0] = 0;
    name[strcspn(name, "\n")] = 0;
    bool ours = sscanf(name, "ramet.%d%c", &number, &rest) == 1 && number >= 0 && number < PORTS;
    return ours ? number : -1;
}

/* Serve the ports that have appeared since the last time; returns how many. */
static int serve_ports(bool served[PORTS])
{
    DIR *ports = opendir("/sys/class/virtio-ports");
    int count = 0;
    for (struct dirent *entry; ports && (entry = readdir(ports));) {
        char path[300];
        int number = port_number(entry->d_name);
        if (number < 0 || served[number])
            continue;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
        if (fd < 0)
            continue;
        served[number] = true;
        count++;
        serve_stream(fd, true);
    }
    if (ports)
        closedir(ports);
    return count;
}

/* Descriptors 0 to 2 are open, so that no pipe of a command ever gets one of these numbers. */
static bool open_stdio(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd < 3);
    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

int main(int argc, char **argv)
{
    bool served[PORTS] = {false};
    if (argc > 1)
        return files_main(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    if (!open_stdio())
        return 1;
    protect_from_oom();
    guest_init("");
    bool reachable = serve_vsock();
    int64_t rush_ends_ms = now_ms() + PORT_RUSH_MS;
    for (int have = 0; have < PORTS;) { /* the driver adds them one by one */
        int more = serve_ports(served);
        have += more;
        if (now_ms() < rush_ends_ms)
            usleep(more ? 0 : 2000);
        else if (reachable)
            break; /* no ports here */
        else
            sleep(1);
    }
    for (;;)
        pause();
}
