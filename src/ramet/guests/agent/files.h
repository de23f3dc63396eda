/* put and get: the agent's own program, run as a command of the workload. */
#ifndef RAMET_FILES_H
#define RAMET_FILES_H

/* ramet-agent put MODE PATH <bytes, or ramet-agent get PATH >header and bytes. Returns the exit status: 0, or an errno, which
 * stderr then explains. */
int files_main(int argc, char **argv);

#endif
