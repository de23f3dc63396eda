/* A VMM without a VM: it maps guest memory privately, says where, and stays until it is killed.
 *
 * A VMM outlives the command, and the thread, that started it; this one does not outlive the process of the test, which holds
 * the other end of LIFE_FD.
 *
 * usage: vmm MEMORY SIZE MODE READY_FD LIFE_FD    MEMORY "-": no file, all zeros; MODE "r" or "w": how it opens the file
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc != 6)
		return 2;
	size_t size = strtoul(argv[2], NULL, 10);
	int ready_fd = atoi(argv[4]);
	int fd = -1;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;
	if (strcmp(argv[1], "-") != 0) {
		fd = open(argv[1], (*argv[3] == 'w' ? O_RDWR : O_RDONLY) | O_CLOEXEC);
		if (fd < 0)
			return 3;
		flags = MAP_PRIVATE;
	}
	void *address = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (address == MAP_FAILED)
		return 4;
	if (write(ready_fd, &address, sizeof address) != sizeof address)
		return 5;
	close(ready_fd);
	char end;
	return read(atoi(argv[5]), &end, 1) == 0 ? 0 : 6;
}
