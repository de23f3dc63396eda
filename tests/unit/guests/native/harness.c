/* The agent on this host, for tests: its own sources but for main.c, with the calls that would change the host replaced (fakes.c).
 *
 *   harness ROOT unix PATH     accepts connections, as over vsock
 *   harness ROOT stream FD     one stream that outlives its clients, as a virtio port
 *   harness misbehave overflow|undefined|leak
 *
 * Ends on SIGTERM, by way of exit(3), so that the leak check runs. */
#define _GNU_SOURCE
#include "fakes.h"
#include "files.h"
#include "guest.h"
#include "threads.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static bool serve_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || strlen(path) >= sizeof address.sun_path)
        return false;
    strcpy(address.sun_path, path);
    return bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 64) == 0 &&
           serve_listener(listener);
}

/* Do what a sanitizer is to find: a test sees that it does. */
static int misbehave(const char *how)
{
    volatile size_t past = 8;
    char *volatile block = calloc(1, past);
    if (strcmp(how, "overflow") == 0)
        return block[past];
    if (strcmp(how, "undefined") == 0)
        return 0x7fffffff + (int)past;
    block = NULL; /* leak */
    return 0;
}

int main(int argc, char **argv)
{
    sigset_t end;
    int number;
    if (argc > 1 && (strcmp(argv[1], "put") == 0 || strcmp(argv[1], "get") == 0)) {
        fakes_init("."); /* started there, too */
        return files_main(argc, argv);
    }
    if (argc == 3 && strcmp(argv[1], "misbehave") == 0)
        return misbehave(argv[2]);
    if (argc != 4)
        return 2;
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    sigprocmask(SIG_BLOCK, &end, NULL);
    fakes_init(argv[1]);
    guest_init(argv[1]);
    if (strcmp(argv[2], "stream") == 0) {
        int inherited = atoi(argv[3]), fd = fcntl(inherited, F_DUPFD_CLOEXEC, 3);
        close(inherited);
        serve_stream(fd, true);
    } else if (!serve_unix(argv[3])) {
        perror(argv[3]);
        return 1;
    }
    if (write(STDOUT_FILENO, "ready\n", 6) != 6)
        return 1;
    sigwait(&end, &number);
    return 0;
}
