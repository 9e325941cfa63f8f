-- digits_resnet.lua - a deep residual network reads handwritten digits, and what becomes of it without each part.
--
-- Teaches: residuals (He et al. 2016, arXiv 1512.03385, eq. 1), batch normalisation (Ioffe and Szegedy 2015), initial
-- scales (Glorot and Bengio 2010; He et al. 2015; measured: LSUV, Mishkin and Matas 2016), dropout, decay of weights
-- and of the learning rate: a flag each. Before it learns it shows the gradient of the loss by layer, with and without.
-- Run:  ./perilune run recipes/nets/digits_resnet.lua    seconds of one core; --no-residual --no-norm: the plain net.
--       IDX files of others: --train 0 --images FILE --labels FILE --test_images FILE --test_labels FILE
-- Departs from the paper: stages of 8 x 8, 4 x 4 and 2 x 2 pixels, its option B between them; a block begins as its
-- shortcut (Goyal et al. 2017, 5.1); pictures are moved by a pixel and not mirrored.
local peri = require "perilune"
local nn, optim, sched, recipe = peri.nn, peri.optim, peri.sched, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  images = { "digits/images.idx3-ubyte.gz", "an IDX file" }, labels = { "digits/labels.idx1-ubyte.gz", "theirs" },
  test_images = { "", "another; empty = what is left of the first" }, test_labels = { "", "theirs" },
  train = { 1000, "pictures to train on, the first; 0 = all", range = "[0, inf)" },
  held_out = { 100, "of them, the last, to validate on", range = "[1, inf)" },
  epochs = { 30, "passes", range = "[1, inf)", budget = true }, batch = { 50, "of an update", range = "[2, inf)" },
  blocks = { 5, "of two layers in each of three stages: 6 blocks + 2 layers", range = "[1, inf)" },
  width = { 16, "channels of the first stage", range = "[1, inf)" },
  residual = { true, "add a block's input" }, norm = { true, "batch normalisation behind each convolution" },
  init = { "he", "weights; uniform = PyTorch's", choices = { "he", "xavier", "lsuv", "uniform" } },
  dropout = { 0.1, "of what the last layer sees", range = "[0, 1)" },
  shift = { 1, "pixels that a picture is moved at most", range = "[0, inf)" },
  lr = { 0.1, "learning rate", range = "(0, inf)" }, weight_decay = { 5e-4, "of the weights", range = "[0, inf)" },
  decay = { "cosine", "of the learning rate; plateau = by the loss of validation",
    choices = { "none", "step", "exponential", "cosine", "plateau" } },
})
local function read(images, labels) -- (N, 1, H, W) from 0 to 255, (N)
  local x, y = peri.data.idx(recipe.find(images, "an IDX file"), recipe.find(labels, "an IDX file"))
  return assert(x, y):to "f32":reshape { x:size(1), 1, x:size(2), x:size(3) }, y
end
local x, y = read(cfg.images, cfg.labels)
local n = cfg.train > 0 and math.min(cfg.train, x:size(1)) or x:size(1)
assert(n - cfg.held_out >= cfg.batch and (n < x:size(1) or cfg.test_images ~= ""), "too few pictures: --train")
local test_x, test_y = x:narrow(1, n + 1, x:size(1) - n), y:narrow(1, n + 1, x:size(1) - n)
if cfg.test_images ~= "" then test_x, test_y = read(cfg.test_images, cfg.test_labels) end
local fit, classes, H, W, wide = n - cfg.held_out, y:max():item() + 1, x:size(3), x:size(4), x:size(4) + 2 * cfg.shift
local mean, std = x:narrow(1, 1, fit):mean(), x:narrow(1, 1, fit):std()
x, test_x = peri.keep((x - mean) / std), peri.keep((test_x - mean) / std)

local fill = { he = nn.init.kaiming_normal_, xavier = nn.init.xavier_normal_ }
local function build(how) -- residual, norm, init, zero
  local to, net = cfg.width, nn.Sequential(nn.Conv2d(1, cfg.width, 3, { padding = 1, bias = not how.norm }))
  net:add(how.norm and nn.BatchNorm2d(to) or nn.Identity()):add(nn.ReLU())
  for i = 0, 3 * cfg.blocks - 1 do
    local from, wider = to, i > 0 and i % cfg.blocks == 0
    to = wider and 2 * from or from
    net:add(nn.BasicBlock(from, to, wider and 2 or 1, { residual = how.residual, norm = how.norm, zero = how.zero }))
  end
  net:add(nn.AdaptiveAvgPool2d(1)):add(nn.Flatten()):add(nn.Dropout(cfg.dropout)):add(nn.Linear(to, classes))
  for _, entry in ipairs(fill[how.init] and net:named_parameters() or {}) do
    if entry[2].ndim > 1 then fill[how.init](entry[2]) elseif entry[1]:find "bias$" then nn.init.zeros_(entry[2]) end
  end
  return how.init == "lsuv" and nn.init.lsuv_(net, x:narrow(1, 1, math.min(fit, 500))) or net
end
local curves, lines = {}, { ("%-22s %9s %9s %9s"):format("gradient by layer", "first", "middle", "last") }
local function by_layer(name, net) -- norms of the loss's gradient by the weights of each layer but shortcuts
  net(x:narrow(1, 1, cfg.batch)):cross_entropy(y:narrow(1, 1, cfg.batch)):backward()
  local norms = {}
  for _, p in ipairs(net:parameters()) do
    if p.ndim == 4 and p:size(4) == 3 then norms[#norms + 1] = p.grad:square():sum():sqrt():item() end
  end
  net:zero_grad()
  curves[#curves + 1] = { name = name, y = norms }
  return ("%-22s %9.2g %9.2g %9.2g"):format(name, norms[1], norms[#norms // 2 + 1], norms[#norms])
end
for arm in ("residual norm he,residual he,norm he,plain he,plain xavier,plain uniform,plain lsuv"):gmatch "[^,]+" do
  lines[#lines + 1] = by_layer(arm, build { residual = arm:find "residual" ~= nil, norm = arm:find "norm" ~= nil,
    init = arm:match "%w+$" })
end
local net = build { residual = cfg.residual, norm = cfg.norm, init = cfg.init,
  zero = cfg.residual and cfg.norm and cfg.init ~= "lsuv" }
local opt = optim.SGD(net, { lr = cfg.lr, momentum = 0.9, nesterov = true,
  groups = { { where = function (_, p) return p.ndim > 1 end, weight_decay = cfg.weight_decay } } })
local places = peri.data.list(peri.arange(0, fit, 1, "i64"):tolist()):shuffle(cfg.seed)
local batches = places:batch(cfg.batch, { drop_last = true }):repeat_()
local plateau = sched.plateau { from = cfg.lr, factor = 0.2, patience = 2, to = cfg.lr / 1000 }
local rate = ({ none = sched.constant(cfg.lr), cosine = sched.cosine { from = cfg.lr, steps = cfg.epochs },
  step = sched.step { from = cfg.lr, every = cfg.epochs // 3 + 1 }, plateau = plateau,
  exponential = sched.exponential { from = cfg.lr, factor = 0.01 ^ (1 / cfg.epochs) } })[cfg.decay]
local run = recipe.start { name = "digits_resnet", flags = cfg, total = cfg.epochs, columns = { "loss", "val_loss" } }
run:track("net", net):track("optimizer", opt):track("batches", batches):track("plateau", plateau)
local function measure(xs, ys) -- mean loss, share of right answers
  local _ <close>, loss, right, total = peri.no_grad(), 0, 0, ys:size(1)
  for k = 1, total, 500 do
    local size = math.min(500, total - k + 1)
    local logits, want = net:eval()(xs:narrow(1, k, size)), ys:narrow(1, k, size)
    loss, right = loss + logits:cross_entropy(want):item() * size, right + logits:argmax(2):eq(want):sum():item()
  end
  net:train()
  return loss / total, right / total
end
local grid = (peri.arange(0, H, 1, "i64"):unsqueeze(2) * wide + peri.arange(0, W, 1, "i64")):reshape { 1, H * W }
for epoch in run:steps() do
  local loss, updates, s = 0, fit // cfg.batch, cfg.shift
  for _ = 1, updates do
    local _ <close> = peri.scope()
    local at, each = peri.tensor(batches(), "i64"), { cfg.batch, 1 }
    local seen = x:index_select(at, 1):pad({ s, s, s, s }, x:min():item()):flatten(2)
    local moved = peri.randint(0, 2 * s + 1, each) * wide + peri.randint(0, 2 * s + 1, each)
    local of_batch = net(seen:gather(grid + moved, 2):reshape { -1, 1, H, W }):cross_entropy(y:index_select(at, 1))
    of_batch:backward()
    opt:step { lr = rate(epoch) }:zero_grad()
    loss = loss + of_batch:item() / updates
  end
  local val_loss, val_accuracy = measure(x:narrow(1, fit + 1, cfg.held_out), y:narrow(1, fit + 1, cfg.held_out))
  plateau:observe(val_loss)
  run:log(epoch, { loss = loss, val_loss = val_loss, val_accuracy = val_accuracy, lr = opt.lr })
end
lines[#lines + 1] = by_layer("this one, at the end", net)
local known = x:narrow(1, 1, math.min(fit, 1000)):flatten(2) -- baseline: the label of the nearest picture
local near = y:index_select((test_x:flatten(2):matmul(known:transpose()) * 2 - known:square():sum(2)):argmax(2), 1)
peri.plot.save(run:path "gradients.svg", { title = "norm of the gradient by layer", yscale = "log", series = curves })
run:plot("curves.svg", { { "loss", "val_loss" }, "val_accuracy", "lr" })
run:text("%s", table.concat(lines, "\n"))
local said = run:scores("accuracy", (select(2, measure(test_x, test_y))), 4)
run:text("%d test pictures, right with %d layers: %s; by the nearest of %d pictures: %.4f", test_y:size(1),
  6 * cfg.blocks + 2, said, known:size(1), near:eq(test_y):to "f32":mean():item())
run:finish()
