std = "lua54"
cache = false
max_line_length = 110
files["lua/meta"] = { ignore = { "1", "2", "6" } } -- generated declarations, never run
files["tests"] = { globals = { "peri" } }
self = false
