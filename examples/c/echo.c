/* An echo over Pilot, in C.
 *
 *     echo serve SOCKET PORT               answers one peer, then ends
 *     echo call SOCKET ADDRESS:PORT TEXT   sends the text and prints what comes back
 *
 * SOCKET is that of the daemon; "" means the one of this user. Build and run (docs/libpilot.md):
 *
 *     cargo build -p pilot-ffi
 *     gcc -Wall -o echo examples/c/echo.c -I crates/pilot-ffi/include -L target/debug -lpilot -Wl,-rpath,target/debug
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pilot.h"

/* Prints an error and releases it. Nothing when there is none. */
static int failed(const char *what, char *error) {
    if (error == NULL) {
        return 0;
    }
    fprintf(stderr, "%s: %s\n", what, error);
    FreeString(error);
    return 1;
}

/* Sends everything back until the peer closes. */
static int answer(uint64_t conn) {
    for (;;) {
        PilotConnRead_return got = PilotConnRead(conn, 4096);
        if (got.r2 != NULL) {
            int over = strcmp(got.r2, "{\"error\":\"EOF\"}") == 0;
            if (!over) {
                fprintf(stderr, "read: %s\n", got.r2);
            }
            FreeString(got.r2);
            return over ? 0 : 1;
        }
        PilotConnWrite_return sent = PilotConnWrite(conn, got.r1, got.r0);
        FreeString(got.r1);
        if (failed("write", sent.r1)) {
            return 1;
        }
    }
}

static int serve(uint64_t driver, const char *port) {
    PilotListen_return bound = PilotListen(driver, (uint16_t)atoi(port));
    if (failed("listen", bound.r1)) {
        return 1;
    }
    printf("listening on port %s\n", port);
    fflush(stdout);
    PilotListenerAccept_return peer = PilotListenerAccept(bound.r0);
    int status = failed("accept", peer.r1);
    if (status == 0) {
        status = answer(peer.r0);
        status |= failed("close", PilotConnClose(peer.r0));
    }
    return status | failed("close the port", PilotListenerClose(bound.r0));
}

static int call(uint64_t driver, const char *address, const char *text) {
    PilotDial_return peer = PilotDial(driver, address);
    if (failed("dial", peer.r1)) {
        return 1;
    }
    size_t length = strlen(text), come = 0;
    PilotConnWrite_return sent = PilotConnWrite(peer.r0, text, (int)length);
    int status = failed("write", sent.r1);
    while (status == 0 && come < length) {
        PilotConnRead_return got = PilotConnRead(peer.r0, 4096);
        status = failed("read", got.r2);
        if (got.r1 != NULL) {
            fwrite(got.r1, 1, (size_t)got.r0, stdout);
            come += (size_t)got.r0;
        }
        FreeString(got.r1);
    }
    puts("");
    return status | failed("close", PilotConnClose(peer.r0));
}

int main(int argc, char **argv) {
    int serves = argc == 4 && strcmp(argv[1], "serve") == 0;
    int calls = argc == 5 && strcmp(argv[1], "call") == 0;
    if (!serves && !calls) {
        fprintf(stderr, "usage: echo serve SOCKET PORT | echo call SOCKET ADDRESS:PORT TEXT\n");
        return 2;
    }
    PilotConnect_return driver = PilotConnect(argv[2]);
    if (failed("connect", driver.r1)) {
        return 1;
    }
    char *info = PilotInfo(driver.r0);
    fprintf(stderr, "%.60s...\n", info);
    FreeString(info);
    int status = serves ? serve(driver.r0, argv[3]) : call(driver.r0, argv[3], argv[4]);
    return status | failed("close the driver", PilotClose(driver.r0));
}
