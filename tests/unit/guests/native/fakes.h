/* The system calls that would change this host, replaced by the linker (--wrap): each adds a line to ROOT/calls and then does what
 * ROOT/fake-NAME says: fail with the errno that it holds or, if it says "hang", wait until it is gone. */
#ifndef RAMET_FAKES_H
#define RAMET_FAKES_H

void fakes_init(const char *root);

#endif
