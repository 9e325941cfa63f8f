"""bridge.py - the Python side of runtime/env/python.c: environments in a process of their own.

Run as python -c SOURCE KIND NAME OPTIONS PATH RENDER. Commands come over the socket 3, what environments read and write
lies in the memory behind descriptor 4. A frame is a u32 of bytes, a letter, the bytes; numbers are native. ORDER bridge:
letters and fields are those of python.c. NumPy is used where it is there; without it plain lists are understood.
"""
import importlib, importlib.util, json, math, mmap, os, socket, struct, sys

try:
    import numpy as np
except ImportError:
    np = None

BOX, DISCRETE, MULTI_DISCRETE, MULTI_BINARY = 1, 2, 3, 4
# ORDER dtype: numbers of perilune.h, letters of struct
BOOL, U8, I32, I64, F32, F64 = 0, 1, 2, 3, 6, 7
LETTER = {BOOL: "B", U8: "B", I32: "i", I64: "q", F32: "f", F64: "d"}
SIZE = {BOOL: 1, U8: 1, I32: 4, I64: 8, F32: 4, F64: 8}
# what a dtype of NumPy's becomes: one that holds all of its values
WIDER = {"float32": F32, "float64": F64, "float16": F32, "uint8": U8, "bool": U8, "int8": I32, "int16": I32,
         "uint16": I32, "int32": I32, "uint32": I64, "int64": I64}

peer = socket.socket(fileno=3)


class Gone(Exception):
    pass


def receive(n):
    data = b""
    while len(data) < n:
        piece = peer.recv(n - len(data))
        if not piece:
            raise Gone
        data += piece
    return data


def send(letter, data=b""):
    peer.sendall(struct.pack("=IB", len(data), ord(letter)) + data)


class Failure(Exception):
    """What is wrong with an environment: which one, and why."""

    def __init__(self, index, text):
        self.index = index
        super().__init__(text)


def described(error):
    """'TypeError: text (file.py:12)', the place being the innermost one outside of this file."""
    place, at = "", error.__traceback__
    while at is not None:
        name = at.tb_frame.f_code.co_filename
        if name != "<string>":
            place = " (%s:%d)" % (os.path.basename(name), at.tb_lineno)
        at = at.tb_next
    return "%s: %s%s" % (type(error).__name__, error, place)


def flat(value):
    """The numbers of nested lists or of an array, in order."""
    if np is not None:
        return np.asarray(value).ravel()
    out, todo = [], [value]
    while todo:
        v = todo.pop()
        if isinstance(v, (list, tuple)):
            todo.extend(reversed(v))
        else:
            out.append(v)
    return out


def shape_of(value):
    if np is not None:
        return tuple(np.shape(value))
    shape = []
    while isinstance(value, (list, tuple)):
        shape.append(len(value))
        value = value[0] if value else 0
    return tuple(shape)


class Space:
    """A space of Gymnasium's as the runtime knows it, and values of it as numbers."""

    def __init__(self, space, what, is_action):
        self.space, self.what, self.flatten, self.fields = space, what, None, []
        kind = type(space).__name__
        if kind in ("Dict", "Tuple"):
            if is_action:
                raise ValueError("actions of %s: Box, Discrete, MultiDiscrete and MultiBinary are known" % kind)
            utils = importlib.import_module(type(space).__module__.split(".")[0] + ".spaces.utils")
            parts = space.spaces.items() if kind == "Dict" else enumerate(space.spaces)
            at = 0
            for name, part in parts:
                n = int(utils.flatdim(part))
                self.fields.append((KINDS.get(type(part).__name__, BOX), at, n, str(name)))
                at += n
            self.flatten = lambda value: utils.flatten(self.space, value)
            space, kind = utils.flatten_space(space), "Box"
        if kind not in KINDS:
            raise ValueError("%s of %s: Box, Discrete, MultiDiscrete, MultiBinary and, for observations, Dict and Tuple "
                             "are known" % (what, kind))
        self.kind, self.n, self.start, self.lows, self.highs, self.nvec = KINDS[kind], 0, 0, [], [], []
        self.shape = tuple(int(k) for k in (space.shape or ()))
        self.dtype = U8 if kind == "MultiBinary" else I64
        if kind == "Box":
            name = getattr(space.dtype, "name", None) or str(space.dtype)
            if name not in WIDER:
                raise ValueError("%s: a Box of %s" % (what, name))
            self.dtype = WIDER[name]
            self.lows, self.highs = [float(v) for v in flat(space.low)], [float(v) for v in flat(space.high)]
            if len(set(self.lows)) <= 1 and len(set(self.highs)) <= 1:
                self.lows, self.highs = self.lows[:1], self.highs[:1]
        elif kind == "Discrete":
            self.n, self.start, self.shape = int(space.n), int(getattr(space, "start", 0)), ()
        elif kind == "MultiDiscrete":
            self.nvec = [int(v) for v in flat(space.nvec)]
            if any(int(v) for v in flat(getattr(space, "start", 0))):
                raise ValueError("%s: a MultiDiscrete that does not start at 0" % what)
            self.shape = (len(self.nvec),)
        else:
            self.shape = (int(math.prod(self.shape)) if self.shape else int(space.n),)
        self.size = int(math.prod(self.shape))
        self.bytes = self.size * SIZE[self.dtype]

    def packed(self):
        out = struct.pack("=%dq" % (3 + len(self.shape)), self.kind, self.dtype, len(self.shape), *self.shape)
        out += struct.pack("=3q", self.n, self.start, len(self.lows))
        out += struct.pack("=%dd" % (2 * len(self.lows)), *self.lows, *self.highs)
        out += struct.pack("=%dq" % (1 + len(self.nvec)), len(self.nvec), *self.nvec)
        out += struct.pack("=q", len(self.fields))
        for kind, at, n, name in self.fields:
            text = name.encode()
            out += struct.pack("=4q", kind, at, n, len(text)) + text
        return out

    def view(self, memory, offset, rows):
        """Rows of values in the memory in common."""
        part = memory[offset : offset + rows * self.bytes]
        if np is not None:
            kind = {BOOL: np.uint8, U8: np.uint8, I32: np.int32, I64: np.int64, F32: np.float32, F64: np.float64}
            return np.frombuffer(part, dtype=kind[self.dtype]).reshape((rows, self.size))
        part = part.cast(LETTER[self.dtype])
        return [part[i * self.size : (i + 1) * self.size] for i in range(rows)]

    def store(self, row, value):
        if self.flatten is not None:
            value = self.flatten(value)
        want = self.shape if self.kind != MULTI_BINARY else None
        have = shape_of(value)
        if want is not None and have != want and not (self.kind == DISCRETE and math.prod(have) == 1):
            raise ValueError("the observation has shape %s, the space %s" % (have, want))
        values = flat(value)
        if len(values) != self.size:
            raise ValueError("the observation has %d numbers, the space %d" % (len(values), self.size))
        if self.kind == MULTI_BINARY:
            values = [1 if v else 0 for v in values]
        if np is not None:
            row[:] = values
        else:
            for i, v in enumerate(values):
                row[i] = float(v) if self.dtype in (F32, F64) else int(v)

    def value(self, row):
        """An action as environments expect it."""
        if self.kind == DISCRETE:
            return np.int64(row[0]) if np is not None else int(row[0])
        if np is not None:
            return np.array(row, dtype=self.space.dtype).reshape(self.space.shape)
        return list(row)


KINDS = {"Box": BOX, "Discrete": DISCRETE, "MultiDiscrete": MULTI_DISCRETE, "MultiBinary": MULTI_BINARY}


class Single:
    """A Gymnasium environment."""

    def __init__(self, env):
        self.env, self.agents, self.max_steps = env, 1, 0
        self.observation_space, self.action_space = env.observation_space, env.action_space
        spec = getattr(env, "spec", None)
        self.threshold = getattr(spec, "reward_threshold", None)
        if type(env).__name__ == "TimeLimit":  # the runtime keeps the limit
            self.max_steps = int(getattr(env, "_max_episode_steps", 0) or 0)
            self.env = env.env

    def reset(self, seed):
        obs, info = self.env.reset(seed=seed) if seed is not None else self.env.reset()
        return [(obs, info)]

    def step(self, actions, live):
        obs, reward, terminated, truncated, info = self.env.step(actions[0])
        return [(obs, reward, terminated, truncated, info)]

    def live(self):
        return [True]

    def render(self):
        return self.env.render()


class Parallel:
    """A PettingZoo environment in its parallel form: each agent is a row."""

    def __init__(self, env):
        self.env, self.names, self.max_steps, self.threshold = env, list(env.possible_agents), 0, None
        self.agents = len(self.names)
        first = self.names[0]
        for name in self.names[1:]:
            for what in ("observation_space", "action_space"):
                a, b = getattr(env, what)(first), getattr(env, what)(name)
                if a != b:
                    raise ValueError("agents %s and %s differ in %s: %s and %s" % (first, name, what, a, b))
        self.observation_space, self.action_space = env.observation_space(first), env.action_space(first)

    def reset(self, seed):
        obs, infos = self.env.reset(seed=seed) if seed is not None else self.env.reset()
        return [(obs.get(name), infos.get(name) or {}) for name in self.names]

    def step(self, actions, live):
        acting = {name: actions[i] for i, name in enumerate(self.names) if live[i] and name in self.env.agents}
        obs, rewards, over, cut, infos = self.env.step(acting)
        return [(obs.get(name), rewards.get(name, 0.0), over.get(name, name not in self.env.agents),
                 cut.get(name, False), infos.get(name) or {}) for name in self.names]

    def live(self):
        return [name in self.env.agents for name in self.names]

    def render(self):
        return self.env.render()


def module_at(path):
    spec = importlib.util.spec_from_file_location(os.path.splitext(os.path.basename(path))[0], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def maker(kind, name, options, render):
    """A function that makes one environment."""
    more = {"render_mode": "rgb_array"} if render else {}
    if kind == "gymnasium":
        gymnasium = importlib.import_module("gymnasium")
        return lambda: Single(gymnasium.make(name, disable_env_checker=True, **more, **options))
    if kind == "pettingzoo":
        module = importlib.import_module("pettingzoo." + name)
        return lambda: Parallel(module.parallel_env(**more, **options))
    path, function = name.rsplit(":", 1)  # file:PATH:FUNCTION
    make = getattr(module_at(path), function)

    def own():
        env = make(**options)
        return Parallel(env) if hasattr(env, "possible_agents") else Single(env)

    return own


class Server:
    def __init__(self, make):
        self.make, self.envs = make, {0: make()}
        first = self.envs[0]
        self.obs = Space(first.observation_space, "observations", False)
        self.action = Space(first.action_space, "actions", True)
        self.agents = first.agents
        info = first.reset(None)[0][1]
        self.masked = self.action.kind == DISCRETE and "action_mask" in (info or {})
        threshold = float("nan") if first.threshold is None else float(first.threshold)
        send("H", struct.pack("=3qd", first.agents, first.max_steps, int(self.masked), threshold)
             + self.obs.packed() + self.action.packed())

    def map(self, data):
        fields = struct.unpack("=%dq" % (len(data) // 8), data)
        size, rows, worker, workers = fields[:4]
        memory = memoryview(mmap.mmap(4, size))
        actions, obs, reward, over, cut, live, mask = fields[4:]
        self.actions, self.observations = self.action.view(memory, actions, rows), self.obs.view(memory, obs, rows)
        self.reward = memory[reward : reward + 8 * rows].cast("d")
        self.over, self.cut, self.alive = memory[over : over + rows], memory[cut : cut + rows], memory[live : live + rows]
        self.mask = memory[mask : mask + rows * self.action.n] if self.masked else None
        first = self.envs.pop(0)
        for i in range(worker, rows // self.agents, workers):
            self.envs[i] = first if first is not None else self.make()
            first = None
        self.worker, self.workers = worker, workers
        send("K")

    def put(self, index, row, obs, info):
        if obs is not None:  # of an agent that is out there is none: the last one stays
            self.obs.store(self.observations[row], obs)
        if self.masked:
            values = flat((info or {})["action_mask"])
            if len(values) != self.action.n:
                raise ValueError("action_mask has %d entries, there are %d actions" % (len(values), self.action.n))
            at = row * self.action.n
            self.mask[at : at + self.action.n] = bytes(1 if v else 0 for v in values)

    def reset(self, data):
        index, seeded, seed = struct.unpack("=qqQ", data)
        env = self.envs[index]
        try:
            for k, (obs, info) in enumerate(env.reset(seed if seeded else None)):
                self.put(index, index * self.agents + k, obs, info)
            for k, on in enumerate(env.live()):
                self.alive[index * self.agents + k] = on
        except Exception as error:
            raise Failure(index, described(error)) from error
        send("K")

    def step(self, data):
        begin, end = struct.unpack("=qq", data)
        begin += (self.worker - begin) % self.workers
        for index in range(begin, end, self.workers):
            env, first = self.envs[index], index * self.agents
            try:
                actions = [self.action.value(self.actions[first + k]) for k in range(self.agents)]
                results = env.step(actions, self.alive[first : first + self.agents])
                for k, (obs, reward, over, cut, info) in enumerate(results):
                    row = first + k
                    self.put(index, row, obs, info)
                    self.reward[row], self.over[row], self.cut[row] = float(reward), bool(over), bool(cut)
                for k, on in enumerate(env.live()):
                    self.alive[first + k] = on
            except Exception as error:
                raise Failure(index, described(error)) from error
        send("K")

    def draw(self, data):
        (index,) = struct.unpack("=q", data)
        try:
            picture = self.envs[index].render()
            shape = shape_of(picture)
            if picture is None or len(shape) != 3 or shape[2] != 3:
                raise ValueError("render() gives no (H, W, 3) array; make it with render = true")
        except Exception as error:
            raise Failure(index, described(error)) from error
        send("P", struct.pack("=2q", shape[0], shape[1]) + bytes(bytearray(int(v) for v in flat(picture)))
             if np is None else struct.pack("=2q", shape[0], shape[1]) + np.asarray(picture, np.uint8).tobytes())

    def serve(self):
        commands = {"M": self.map, "R": self.reset, "S": self.step, "D": self.draw}
        while True:
            size, letter = struct.unpack("=IB", receive(5))
            data = receive(size)
            try:
                commands[chr(letter)](data)
            except Failure as failure:
                send("E", struct.pack("=q", failure.index) + str(failure).encode())


def main():
    kind, name, options, path, render = sys.argv[1:6]
    if path:
        sys.path.insert(0, path)
    try:
        server = Server(maker(kind, name, json.loads(options or "{}"), render == "1"))
    except Exception as error:
        send("E", struct.pack("=q", -1) + described(error).encode())
        return
    server.serve()


try:
    main()
except (Gone, BrokenPipeError, ConnectionResetError):
    pass
