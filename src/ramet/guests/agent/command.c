/* An exec request, parsed, and the program that it means. */
#define _GNU_SOURCE
#include "command.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const defaults[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                                       "HOME=/root", "TERM=linux", "LANG=C.UTF-8"};
#define DEFAULTS (sizeof defaults / sizeof *defaults)

static void free_strings(char **strings)
{
    for (char **at = strings; at && *at; at++)
        free(*at);
    free(strings);
}

void command_free(struct command *cmd)
{
    free_strings(cmd->argv);
    free_strings(cmd->envp);
    free(cmd->cwd);
    free(cmd->program);
    memset(cmd, 0, sizeof *cmd);
}

/* A 32-bit count and strings, as a list that ends with NULL and has room for `extra` more. */
static char **get_strings(struct cursor *c, size_t extra)
{
    size_t count = (size_t)get_int(c, 4);
    char **strings = NULL;
    if (!c->bad && count <= c->left / 2) /* each takes two bytes at least */
        strings = calloc(count + extra + 1, sizeof *strings);
    if (!strings)
        c->bad = true;
    for (size_t i = 0; !c->bad && i < count; i++)
        strings[i] = get_string(c);
    return strings;
}

/* Whether a variable of the list has the name of `setting`. */
static bool is_set(char *const *envp, const char *setting)
{
    size_t len = (size_t)(strchr(setting, '=') - setting) + 1;
    for (; *envp; envp++)
        if (strncmp(*envp, setting, len) == 0)
            return true;
    return false;
}

static bool add_defaults(char **envp)
{
    char **end = envp;
    while (*end)
        end++;
    for (size_t i = 0; i < DEFAULTS; i++)
        if (!is_set(envp, defaults[i]) && !(*end++ = strdup(defaults[i])))
            return false;
    return true;
}

bool command_parse(struct command *cmd, struct cursor *c)
{
    memset(cmd, 0, sizeof *cmd);
    cmd->flags = (uint32_t)get_int(c, 4);
    cmd->timeout_ms = (uint32_t)get_int(c, 4);
    cmd->rows = (unsigned)get_int(c, 2);
    cmd->cols = (unsigned)get_int(c, 2);
    cmd->cwd = get_string(c);
    cmd->argv = get_strings(c, 0);
    cmd->envp = get_strings(c, DEFAULTS);
    return cursor_done(c) && !(cmd->flags & ~FLAGS_KNOWN) && cmd->argv[0] && cmd->argv[0][0] && add_defaults(cmd->envp);
}

static int set_program(struct command *cmd, const char *path)
{
    cmd->program = strdup(path);
    return cmd->program ? 0 : ENOMEM;
}

static const char *search_path(char *const *envp)
{
    for (; *envp; envp++)
        if (strncmp(*envp, "PATH=", 5) == 0)
            return *envp + 5;
    return "";
}

int command_find(struct command *cmd)
{
    const char *name = cmd->argv[0], *path = search_path(cmd->envp);
    if (cmd->flags & FLAG_FILES)
        return set_program(cmd, "/proc/self/exe");
    if (strchr(name, '/'))
        return set_program(cmd, name);
    int error = ENOENT;
    while (*path) {
        int len = (int)strcspn(path, ":");
        char candidate[4096];
        struct stat found;
        int put = snprintf(candidate, sizeof candidate, "%.*s/%s", len, path, name);
        if (len > 0 && put > 0 && (size_t)put < sizeof candidate && stat(candidate, &found) == 0 && S_ISREG(found.st_mode)) {
            if (access(candidate, X_OK) == 0)
                return set_program(cmd, candidate);
            error = EACCES;
        }
        path += len + (path[len] == ':');
    }
    return error;
}
