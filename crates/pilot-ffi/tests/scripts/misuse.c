/* Calls of a broken program: wild handles, NULL everywhere, a last argument that was never passed, handles closed under
 * those who wait on them. Run with a checker of memory: nothing may be read, written or lost that is not ours.
 *
 *     misuse SOCKET PEER
 */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pilot.h"

static int faults;

/* The text must be an error that holds `part`. */
static void wrong(const char *what, char *text, const char *part) {
    if (text == NULL || strstr(text, "{\"error\":\"") != text || strstr(text, part) == NULL) {
        fprintf(stderr, "%s: %s lacks %s\n", what, text == NULL ? "NULL" : text, part);
        faults++;
    }
    FreeString(text);
}

static void right(const char *what, char *text) {
    if (text != NULL) {
        fprintf(stderr, "%s: %s\n", what, text);
        faults++;
    }
    FreeString(text);
}

static void *reader(void *handle) {
    PilotConnRead_return got = PilotConnRead(*(uint64_t *)handle, 16);
    wrong("read, closed", got.r2, "");
    FreeString(got.r1);
    return NULL;
}

static void *accepter(void *handle) {
    PilotListenerAccept_return got = PilotListenerAccept(*(uint64_t *)handle);
    wrong("accept, closed", got.r1, "");
    return NULL;
}

static void *receiver(void *handle) {
    wrong("recv, closed", PilotRecvFrom(*(uint64_t *)handle), "");
    return NULL;
}

static void wild(uint64_t handle) {
    wrong("info", PilotInfo(handle), "handle");
    wrong("handshake", PilotHandshake(handle, 1, NULL), "handle");
    wrong("tags", PilotSetTags(handle, "[]"), "handle");
    wrong("broadcast", PilotBroadcast(handle, 1, 1, NULL, -1, NULL), "handle");
    wrong("policy", PilotPolicySet(handle, 1, NULL, (const char *)0x33), "handle");
    wrong("dial", PilotDial(handle, NULL).r1, "handle");
    wrong("listen", PilotListen(handle, 1).r1, "handle");
    wrong("accept", PilotListenerAccept(handle).r1, "handle");
    wrong("read", PilotConnRead(handle, 1).r2, "handle");
    wrong("write", PilotConnWrite(handle, NULL, -1).r1, "handle");
    wrong("deadline", PilotConnSetReadDeadline(handle, 1), "handle");
    wrong("send", PilotSendTo(handle, NULL, NULL, 1), "handle");
    wrong("recv", PilotRecvFrom(handle), "handle");
    wrong("close conn", PilotConnClose(handle), "handle");
    wrong("close port", PilotListenerClose(handle), "handle");
    wrong("close", PilotClose(handle), "handle");
}

int main(int argc, char **argv) {
    if (argc != 3) {
        return 2;
    }
    wild(0);
    wild(77);
    wild(UINT64_MAX);
    wrong("connect", PilotConnect("/nowhere/at/all").r1, "connect to daemon");
    wrong("embedded", PilotEmbeddedStart(NULL), "parse config: nil");
    wrong("embedded", PilotEmbeddedStart("{\"data_dir\":7}"), "data_dir");
    FreeString(PilotEmbeddedStop());
    FreeString(NULL);

    uint64_t driver = PilotConnect(argv[1]).r0;
    if (driver == 0) {
        return 3;
    }
    /* What a binding with one argument too few leaves in the register: numbers, addresses of nothing, of code. */
    const char *registers[] = {(const char *)1, (const char *)0xdeadbeefdeadbeef, (const char *)(uintptr_t)main, NULL, "token"};
    for (size_t i = 0; i < sizeof registers / sizeof *registers; i++) {
        wrong("policy set", PilotPolicySet(driver, 1, "{}", registers[i]), "policy set: daemon: ");
    }
    wrong("address", PilotDial(driver, NULL).r1, "parse address");
    wrong("not UTF-8", PilotSetTags(driver, "\xff\xfe"), "invalid tags JSON");
    wrong("tags", PilotSetTags(driver, NULL), "invalid tags JSON");
    FreeString(PilotResolveHostname(driver, NULL));
    FreeString(PilotHealth(driver));
    FreeString(PilotTrustedPeers(driver));

    char address[64];
    snprintf(address, sizeof address, "%s:7", argv[2]);
    for (int i = 0; i < 3; i++) {
        PilotDial_return dialled = PilotDial(driver, address);
        right("dial", dialled.r1);
        uint64_t conn = dialled.r0;
        wrong("as driver", PilotInfo(conn), "handle is not a Driver");
        right("write", PilotConnWrite(conn, "hello", 5).r1);
        int come = 0;
        while (come < 5) {
            PilotConnRead_return got = PilotConnRead(conn, 5);
            right("read", got.r2);
            if (got.r1 == NULL) {
                break;
            }
            come += got.r0;
            /* As SDKs do that know where the buffer is from. */
            free(got.r1);
        }
        PilotListen_return bound = PilotListen(driver, 2000);
        right("listen", bound.r1);
        uint64_t receives = PilotConnect(argv[1]).r0;
        pthread_t threads[3];
        pthread_create(&threads[0], NULL, reader, &conn);
        pthread_create(&threads[1], NULL, accepter, &bound.r0);
        pthread_create(&threads[2], NULL, receiver, &receives);
        /* Whether they wait already or not yet, they must end, and in words. */
        struct timespec moment = {0, 20000000};
        nanosleep(&moment, NULL);
        right("close", PilotConnClose(conn));
        right("close the port", PilotListenerClose(bound.r0));
        right("close the driver", PilotClose(receives));
        for (int t = 0; t < 3; t++) {
            pthread_join(threads[t], NULL);
        }
    }
    right("close", PilotClose(driver));
    wild(driver);
    return faults == 0 ? 0 : 1;
}
