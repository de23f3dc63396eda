/*
 * Keep one VM of each kind alive, with interrupt controllers in the kernel and without, for as long as the lab runs.
 *
 * KVM counts VMs and such in static keys, so the first one's birth and the last one's death patch the code of the running
 * kernel, the scheduler's too. QEMU's TCG can keep a translation of the breakpoint that stands there meanwhile, and then that
 * CPU runs into it for ever. With these two the keys never change again; they are made while one CPU is online.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

int main(void)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) {
        perror("/dev/kvm");
        return 1;
    }
    for (int in_kernel = 0; in_kernel <= 1; in_kernel++) {
        int vm = ioctl(kvm, KVM_CREATE_VM, 0);
        if (vm < 0 || (in_kernel && ioctl(vm, KVM_CREATE_IRQCHIP, 0) < 0) || ioctl(vm, KVM_CREATE_VCPU, 0) < 0) {
            perror("KVM_CREATE_VM");
            return 1;
        }
    }
    if (daemon(1, 0) < 0) {
        perror("daemon");
        return 1;
    }
    for (;;)
        pause();
}
