-- seq2seq.lua - what encoder-decoders share. In generation inputs are encoded once, keys and values of
-- the cross-attention made once, and the decoder is a model of perilune.decode.engine as any causal model is.
local peri = require "perilune"
local options = require "perilune.options"
local base = require "perilune.models.base"
local generate = require "perilune.decode.generate"
local inputs = require "perilune.models.inputs"

-- Subclasses offer encode(ids, mask), decode(ids, encoded, opts), crossed(i, encoded), logits(hidden).
local Seq2seq = base.class("seq2seq", base.Model)
Seq2seq.kind = "encoder-decoder"

-- The decoder for given inputs, as perilune.decode.engine wants a model. The cache's tags say which input a row is of.
local View = { tagged = true }
View.__index = View

function View:cache(batch, length)
  return self.model:_cache(self.model.decoder, batch, length)
end

local function same(a, b)
  for i = 1, math.max(#a, #b) do if a[i] ~= b[i] then return false end end
  return true
end

-- What rows of these inputs need of the encoder: the keys and values of every layer, and the mask. Made anew only when
-- other rows are there; kept, since the engine goes by scopes of one step.
local function encoded_rows(self, tags)
  local rows = self.rows
  if rows and (rows.tags == tags or same(rows.tags, tags)) then return rows end
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local all = #tags == self.encoded:size(1)
  for r, tag in ipairs(tags) do all = all and tag == r end
  local at = not all and peri.tensor(tags, "i64"):sub(1)
  local function pick(t) return at and peri.keep(t:index_select(at, 1)) or t end
  local new = { tags = tags, picked = not all, crossed = {} }
  for i, pair in ipairs(self.crossed) do new.crossed[i] = { pick(pair[1]), pick(pair[2]) } end
  new.mask = self.mask and pick(self.mask)
  self:let_go()
  self.rows = new
  return new
end

-- Rows that were picked need their tensors no more.
function View:let_go()
  local rows = self.rows
  self.rows = nil
  if not (rows and rows.picked) then return end
  for _, pair in ipairs(rows.crossed) do
    pair[1]:release()
    pair[2]:release()
  end
  if rows.mask then rows.mask:release() end
end

View.__close = View.let_go

function View:forward(ids, ctx)
  local rows = encoded_rows(self, ctx.cache.tags)
  return self.model:decode(ids, self.encoded, { cache = ctx.cache, start = ctx.start, mask = rows.mask,
                                                crossed = rows.crossed })
end

function View:logits(hidden) return self.model:logits(hidden) end

--- Answer inputs.
--- @param ids perilune.Tensor|perilune.Batch  (B, T) i64
--- @param opts table?  of perilune.decode.generate; mask, start, lengths are of ids
--- @return table out  as of perilune.decode.generate; tokens without the start token
function Seq2seq:generate(ids, opts)
  local who, o = self.__name .. ": generate"
  local given, how = generate.split(opts)
  ids, o = inputs.read(who, ids, given, inputs.relative)
  local mask = inputs.rows(who, ids, o).mask
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope()
  local encoded, crossed = self:encode(ids, mask), {}
  for i = 1, self.settings.decoder_layers do crossed[i] = self:crossed(i, encoded) end
  local view <close> = setmetatable({ model = self, encoded = encoded, crossed = crossed,
    mask = mask and mask:to "bool", config = self.config, generation_config = self.generation_config,
    __name = self.__name }, View)
  local out = generate.generate(view, peri.full({ ids:size(1), 1 }, self.settings.first, "i64"), how, 2)
  for _, t in pairs(out) do if peri.is_tensor(t) then scope:keep(t) end end
  scope:keep(out.batch.ids)
  return out
end

-- Labels moved one place to the right behind a start token; -100 becomes pad. -- (B, T)
local function shifted(labels, first, pad)
  local batch, time = labels:size(1), labels:size(2)
  local start = peri.full({ batch, 1 }, first, "i64")
  if time == 1 then return start end
  return peri.cat({ start, labels:masked_fill(labels:eq(-100), pad):narrow(2, 1, time - 1) }, 2)
end

--- Hidden states of the decoder for an input and the output that it is to give.
--- @param ids perilune.Tensor|perilune.Batch  (B, Ts) i64
--- @param opts table  mask, start, lengths of ids; labels (B, T) i64, which the decoder reads shifted by the
--- start token (-100 reads as the padding token), or decoder_ids (B, T) as they are, with decoder_mask
--- @return perilune.Tensor  (B, T, D) f32
function Seq2seq:forward(ids, opts)
  local who, o = self.__name .. ": forward"
  ids, o = inputs.read(who, ids, opts, inputs.seq2seq)
  if (o.labels ~= nil) == (o.decoder_ids ~= nil) then
    options.raise(("%s: %s given; an encoder-decoder reads an input and an output: { labels = ids } or "
      .. "{ decoder_ids = ids }"):format(who, o.labels and "labels and decoder_ids are both"
      or "neither labels nor decoder_ids is"))
  end
  for _, name in ipairs { "labels", "decoder_ids" } do
    local t = o[name]
    if t and (t.ndim ~= 2 or t:size(1) ~= ids:size(1) or t:size(2) == 0) then
      options.raise(("%s: %s has shape %s, expected (%d, T)"):format(who, name, options.shape(t), ids:size(1)))
    end
  end
  local mask = inputs.rows(who, ids, o).mask
  local decoder_ids = o.decoder_ids or shifted(o.labels, self.settings.first, self.config.pad_token_id or 0)
  return self:decode(decoder_ids, self:encode(ids, mask), { mask = mask, decoder_mask = o.decoder_mask })
end
options.declare(Seq2seq.forward, { "ids" }, inputs.seq2seq)

return { Class = Seq2seq }
