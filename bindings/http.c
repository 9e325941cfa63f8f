/*
** http.c - peri._http: an HTTP/1.1 server on GNU libmicrohttpd, which is opened when it is asked for and need not be
** there. A thread of the library takes connections and bodies, within limits, and hangs whole requests into a queue; the
** Lua state takes them from it and answers each when it likes. Nothing here knows what is served.
*/
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "keep.h"

static const char fn[] = "http";
#define SERVER "perilune.http"

/* ---- what is used of the library, by its ABI (microhttpd.h of 0.9.75) ---- */

enum {
  MHD_NO,
  MHD_YES,
  USE_POLLING_THREAD = 8,
  USE_AUTO = 65536,
  ALLOW_SUSPEND = 8192 | 1024,
  OPTION_END = 0,
  OPTION_MEMORY = 1,
  OPTION_CONNECTIONS = 2,
  OPTION_TIMEOUT = 3,
  OPTION_COMPLETED = 4,
  OPTION_SOCKET = 12,
  KIND_HEADER = 1,
  KIND_ARGUMENT = 8,
  MUST_COPY = 2
};

typedef int (*handler_fn)(void *cls, void *conn, const char *url, const char *method,
                          const char *version, const char *data, size_t *n, void **req);
typedef void (*completed_fn)(void *cls, void *conn, void **req, int how);
typedef int (*value_fn)(void *cls, int kind, const char *key, const char *value);

static struct {
  void *(*start)(unsigned flags, uint16_t port, void *accept, void *accept_cls, handler_fn handler,
                 void *handler_cls, ...);
  void (*stop)(void *daemon);
  void (*suspend)(void *conn);
  void (*resume)(void *conn);
  void *(*response)(size_t n, void *body, int mode);
  int (*header)(void *response, const char *name, const char *value);
  int (*queue)(void *conn, unsigned status, void *response);
  void (*destroy)(void *response);
  const char *(*lookup)(void *conn, int kind, const char *key);
  int (*values)(void *conn, int kind, value_fn each, void *cls);
} mhd;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool there;

/* ISO C has no cast from object to function pointers; POSIX promises that this works. */
static bool load (void *lib, const char *name, void *f, size_t size) {
  void *p = dlsym(lib, name);
  memcpy(f, &p, size);
  return p != NULL;
}

#define LOAD(name, field) load(lib, "MHD_" name, &mhd.field, sizeof mhd.field)

static void open_library (void) {
  void *lib = dlopen("libmicrohttpd.so.12", RTLD_NOW | RTLD_LOCAL);
  there = lib && LOAD("start_daemon", start)
  &&LOAD("stop_daemon", stop)
  &&LOAD("suspend_connection", suspend)
  &&LOAD("resume_connection", resume)
  &&LOAD("create_response_from_buffer", response)
  &&LOAD("add_response_header", header)
  &&LOAD("queue_response", queue)
  &&LOAD("destroy_response", destroy)
  &&LOAD("lookup_connection_value", lookup)
  &&LOAD("get_connection_values", values);
}

/* ---- requests ---- */

typedef struct request {
  struct request *next;
  void *conn, *response; /* response: of whoever answered */
  char *method, *url, *body;
  size_t n, room;
  unsigned status;
  lua_Integer id;
  bool refused, waits; /* waits: suspended, in the queue or with Lua */
} request;

typedef struct server {
  pthread_mutex_t lock;
  pthread_cond_t come;
  void *daemon;
  request *first, **last; /* the queue */
  request *taken;         /* of Lua, to be answered */
  size_t most;
  lua_Integer ids;
  bool closing;
  char *path; /* of a Unix socket */
} server;

static void request_free (request *r) {
  if (!r) return;
  if (r->response) mhd.destroy(r->response);
  free(r->method);
  free(r->url);
  free(r->body);
  free(r);
}

static int say (void *conn, unsigned status, const char *text) {
  void *response = mhd.response(strlen(text), (void *)text, MUST_COPY);
  if (!response) return MHD_NO;
  mhd.header(response, "Content-Type", "application/json");
  int rc = mhd.queue(conn, status, response);
  mhd.destroy(response);
  return rc;
}

static const char too_large[] = "{\"error\":\"the body is larger than this server takes\"}";

/* Room for n more bytes of a body; false: too many, or no memory. */
static bool grow (request *r, size_t n, size_t most) {
  if (n > most || r->n > most - n) return false;
  if (r->n + n <= r->room) return true;
  size_t room = r->room ? r->room : 4096;
  while (room < r->n + n) room = room > most / 2 ? most : room * 2;
  char *p = realloc(r->body, room);
  if (!p) return false;
  r->body = p, r->room = room;
  return true;
}

static request *request_new (void *conn, const char *method, const char *url) {
  request *r = calloc(1, sizeof *r);
  if (!r) return NULL;
  r->conn = conn, r->method = strdup(method), r->url = strdup(url);
  if (r->method && r->url) return r;
  request_free(r);
  return NULL;
}

/* Called by the library's thread: at the headers, at parts of the body, at its end, and after a resumption. */
static int handle (void *cls, void *conn, const char *url, const char *method, const char *version,
                   const char *data, size_t *n, void **req) {
  server *s = cls;
  request *r = *req;
  (void)version;
  if (!r) {
    const char *length = mhd.lookup(conn, KIND_HEADER, "Content-Length");
    if (!(r = request_new(conn, method, url))) return MHD_NO;
    *req = r;
    if (!length || strtoull(length, NULL, 10) <= s->most) return MHD_YES;
    r->refused = true;
    return say(conn, 413, too_large);
  }
  if (*n > 0) {
    if (!r->refused && grow(r, *n, s->most))
      memcpy(r->body + r->n, data, *n), r->n += *n;
    else
      r->refused = true;
    *n = 0;
    return MHD_YES;
  }
  if (r->refused) return say(conn, 413, too_large);
  if (r->response) return mhd.queue(conn, r->status, r->response);
  pthread_mutex_lock(&s->lock);
  bool closing = s->closing;
  if (!closing) {
    mhd.suspend(conn);
    r->waits = true;
    *s->last = r, s->last = &r->next;
    pthread_cond_signal(&s->come);
  }
  pthread_mutex_unlock(&s->lock);
  return closing ? say(conn, 503, "{\"error\":\"the server is closing\"}") : MHD_YES;
}

static void completed (void *cls, void *conn, void **req, int how) {
  (void)cls, (void)conn, (void)how;
  request_free(*req);
  *req = NULL;
}

/* ---- the socket ---- */

static int fail (lua_State *L, const char *what, const char *where) {
  lua_pushnil(L);
  lua_pushfstring(L, "%s: %s: %s", where, what, strerror(errno));
  return 2;
}

/* A file that is a socket which nobody listens to is left of a server that was killed. */
static void remove_stale (const char *path, const struct sockaddr_un *at) {
  struct stat st;
  if (lstat(path, &st) != 0 || !S_ISSOCK(st.st_mode)) return;
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  if (connect(fd, (const struct sockaddr *)at, sizeof *at) != 0 && errno == ECONNREFUSED)
    unlink(path);
  close(fd);
}

/* A socket that listens, or -1 and errno. For its user alone. */
static int listen_unix (const char *path) {
  struct sockaddr_un at = { .sun_family = AF_UNIX };
  if (strlen(path) >= sizeof at.sun_path) {
    errno = ENAMETOOLONG;
    return -1;
  }
  strcpy(at.sun_path, path);
  remove_stale(path, &at);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  if (bind(fd, (struct sockaddr *)&at, sizeof at) == 0) {
    if (chmod(path, 0600) == 0 && listen(fd, 128) == 0) return fd;
    int why = errno;
    unlink(path);
    errno = why;
  }
  int why = errno;
  close(fd);
  errno = why;
  return -1;
}

static int listen_tcp (const char *address, int port, int *got) {
  struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
  socklen_t size = sizeof at;
  int on = 1;
  if (inet_pton(AF_INET, address, &at.sin_addr) != 1) {
    errno = EADDRNOTAVAIL;
    return -1;
  }
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(fd, (struct sockaddr *)&at, size) == 0 && listen(fd, 128) == 0 &&
      getsockname(fd, (struct sockaddr *)&at, &size) == 0) {
    *got = ntohs(at.sin_port);
    return fd;
  }
  int why = errno;
  close(fd);
  errno = why;
  return -1;
}

/* ---- for Lua ---- */

/* Answer what waits, so that the library lets go of it. */
static void refuse_all (server *s) {
  pthread_mutex_lock(&s->lock);
  s->closing = true;
  request *lists[2] = { s->first, s->taken };
  s->first = s->taken = NULL, s->last = &s->first;
  pthread_mutex_unlock(&s->lock);
  static char text[] = "{\"error\":\"the server is closing\"}";
  for (int i = 0; i < 2; i++)
    for (request *r = lists[i], *next; r; r = next) {
      next = r->next;
      r->status = 503, r->response = mhd.response(sizeof text - 1, text, MUST_COPY);
      mhd.resume(r->conn);
    }
}

static void server_free (server *s) {
  if (!s) return;
  if (s->daemon) {
    refuse_all(s);
    mhd.stop(s->daemon);
  }
  if (s->path) unlink(s->path);
  free(s->path);
  pthread_cond_destroy(&s->come);
  pthread_mutex_destroy(&s->lock);
  free(s);
}

/* (address, port, path, most bytes of a body, connections, seconds) -> server, port */
static int l_http (lua_State *L) {
  const char *address = luaL_optstring(L, 1, NULL), *path = luaL_optstring(L, 3, NULL);
  int port = (int)luaL_optinteger(L, 2, 0);
  size_t most = (size_t)luaL_checkinteger(L, 4);
  unsigned connections = (unsigned)luaL_checkinteger(L, 5),
           seconds = (unsigned)luaL_checkinteger(L, 6);
  pthread_once(&once, open_library);
  if (!there) {
    lua_pushnil(L);
    lua_pushliteral(L,
                    "libmicrohttpd is not installed (on Debian: apt-get install libmicrohttpd12)");
    return 2;
  }
  peri_handle *h = peri__handle_new(L, SERVER, 0);
  server *s = calloc(1, sizeof *s);
  if (!s) return peri__error(L, "%s: out of memory", fn);
  pthread_mutex_init(&s->lock, NULL);
  pthread_condattr_t how;
  pthread_condattr_init(&how);
  pthread_condattr_setclock(&how, CLOCK_MONOTONIC);
  pthread_cond_init(&s->come, &how);
  pthread_condattr_destroy(&how);
  s->last = &s->first, s->most = most;
  h->p = s;
  int fd = path ? listen_unix(path) : listen_tcp(address, port, &port);
  if (fd < 0) return fail(L, "cannot listen", path ? path : address);
  if (path) s->path = strdup(path);
  s->daemon =
      mhd.start(USE_POLLING_THREAD | USE_AUTO | ALLOW_SUSPEND, 0, NULL, NULL, handle, s,
                OPTION_SOCKET, fd, OPTION_CONNECTIONS, connections, OPTION_TIMEOUT, seconds,
                OPTION_MEMORY, (size_t)(64 * 1024), OPTION_COMPLETED, completed, NULL, OPTION_END);
  if (!s->daemon) {
    close(fd);
    return fail(L, "cannot start", path ? path : address);
  }
  lua_pushinteger(L, port);
  return 2;
}

static int add_value (void *cls, int kind, const char *key, const char *value) {
  lua_State *L = cls;
  (void)kind;
  size_t n = strlen(key);
  if (n > 200 || !lua_checkstack(L, 4)) return MHD_YES;
  char name[201];
  for (size_t i = 0; i <= n; i++)
    name[i] = key[i] >= 'A' && key[i] <= 'Z' ? (char)(key[i] + 32) : key[i];
  lua_pushstring(L, value ? value : "");
  lua_setfield(L, -2, name);
  return MHD_YES;
}

/* The next request as a table, nil after the seconds. */
static int s_next (lua_State *L) {
  server *s = peri__handle_open(L, SERVER, "next");
  double seconds = luaL_checknumber(L, 2);
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_sec += (time_t)seconds;
  until.tv_nsec += (long)((seconds - (double)(time_t)seconds) * 1e9);
  if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
  pthread_mutex_lock(&s->lock);
  int rc = 0;
  while (!s->first && rc == 0) rc = pthread_cond_timedwait(&s->come, &s->lock, &until);
  request *r = s->first;
  if (r) {
    s->first = r->next;
    if (!s->first) s->last = &s->first;
    r->next = s->taken, s->taken = r, r->id = ++s->ids;
  }
  pthread_mutex_unlock(&s->lock);
  if (!r) return 0;
  lua_createtable(L, 0, 6); /* what fails from here on leaves a request that close() answers */
  lua_pushinteger(L, r->id);
  lua_setfield(L, -2, "id");
  lua_pushstring(L, r->method);
  lua_setfield(L, -2, "method");
  lua_pushstring(L, r->url);
  lua_setfield(L, -2, "path");
  lua_pushlstring(L, r->body ? r->body : "", r->n);
  lua_setfield(L, -2, "body");
  lua_newtable(L);
  mhd.values(r->conn, KIND_HEADER, add_value, L);
  lua_setfield(L, -2, "headers");
  lua_newtable(L);
  mhd.values(r->conn, KIND_ARGUMENT, add_value, L);
  lua_setfield(L, -2, "query");
  return 1;
}

/* (id, status, type, body): answer one; false where it was answered before. */
static int s_reply (lua_State *L) {
  server *s = peri__handle_open(L, SERVER, "reply");
  lua_Integer id = luaL_checkinteger(L, 2), status = luaL_checkinteger(L, 3);
  size_t n;
  const char *type = luaL_checkstring(L, 4), *body = luaL_checklstring(L, 5, &n);
  request **at = &s->taken, *r;
  while (*at && (*at)->id != id) at = &(*at)->next;
  if (!(r = *at)) {
    lua_pushboolean(L, 0);
    return 1;
  }
  void *response = mhd.response(n, (void *)body, MUST_COPY);
  if (!response) return peri__error(L, "%s: out of memory", fn);
  mhd.header(response, "Content-Type", type);
  mhd.header(response, "X-Content-Type-Options", "nosniff");
  *at = r->next, r->next = NULL;
  r->status = (unsigned)status, r->response = response;
  mhd.resume(r->conn);
  lua_pushboolean(L, 1);
  return 1;
}

/* Nothing of it is the context's: it is closed after that, too. */
static int s_close (lua_State *L) {
  peri_handle *h = (peri_handle *)luaL_testudata(L, 1, SERVER);
  server *s = h ? h->p : NULL;
  if (h) h->p = NULL;
  server_free(s);
  return 0;
}

static const peri_reg functions[] = {
  { "_http", "address?, port?, path?, most, connections, seconds",
    "Listen for HTTP on an address or a Unix socket; a server and its port, or nil and a message.",
    l_http },
  { NULL, NULL, NULL, NULL }
};
static const peri_reg meta[] = { { "__gc", "self", NULL, s_close },
                                 { "__close", "self", NULL, s_close },
                                 { NULL, NULL, NULL, NULL } };
static const peri_reg methods[] = {
  { "next", "self, seconds", "The next request, nothing when none comes in time.", s_next },
  { "reply", "self, id, status, type, body", "Answer a request.", s_reply },
  { "close", "self", "Answer all that waits with 503 and stop.", s_close },
  { NULL, NULL, NULL, NULL }
};

void peri__open_http (lua_State *L) {
  peri__metatable(L, SERVER, meta, methods);
  lua_pop(L, 1);
  peri__register(L, functions);
}
