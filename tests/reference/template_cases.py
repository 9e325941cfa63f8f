"""Writes tests/data/template_cases.json: what Jinja2 makes of many small templates, under the settings
of transformers. Not in the path of the tests: pip install jinja2==3.1.6, then run this file.

A case is [template, variables, text], or [template, variables, null, exception] where Jinja2 raises.
"""

import copy
import datetime
import itertools
import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

NOW = datetime.datetime(2024, 7, 6, 15, 4, 5)


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_show"), [], [], body).set_lineno(line)

    def _show(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


env = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols, jinja2.ext.do])
env.filters["tojson"] = tojson
env.globals["raise_exception"] = raise_exception
env.globals["strftime_now"] = NOW.strftime

VARS = {
    "s": "Hello World", "u": "Ünïcode 中文 ß", "e": "", "n": 7, "z": 0, "neg": -3, "f": 2.5, "t": True, "nil": None,
    "ws": "  \t padded \n", "l": [3, 1, 2], "words": ["b", "A", "c"], "mixed": [1, "a", None, True, 2.0, [1], {}],
    "d": {"b": 1, "a": "x", "n": {"k": [1, 2]}},
    "rows": [{"name": "x", "v": 2, "g": "A"}, {"name": "Y", "v": 1, "g": "b"}, {"name": "z", "g": "a", "v": 3}],
    "nest": [[1, 2], [3, [4, 5]]], "pairs": [["k", 1], ["j", 2]],
    "q": "it's \"q\" & <b>", "multi": "a\nb\n\nc\n", "empty": [], "ed": {},
    "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"},
                 {"role": "assistant", "content": "A"}],
}

cases = []


def case(template):
    cases.append(template)


def expressions(text):
    for line in text.strip("\n").split("\n"):
        if line.strip():
            case("{{ " + line + " }}")


# ---- literals, operators, precedence ----
expressions(r"""
1
1.0
1e3
1E-7
1.5e+300
1_000
0x1F
0b101
0o17
00
.5
1.
-1
- 1
+1
--1
not 1
not not 0
true
True
false
none
None
undefined_name
'a' 'b' "c"
'it\'s'
"tab\tnl\nq\"\\"
'\x41\u00e9\U0001F600'
'\101\0'
'\q'
'\u12'
"a\
b"
1 + 2 * 3
(1 + 2) * 3
2 ** 3 ** 2
-2 ** 2
2 ** -1
2 ** 0.5
7 / 2
6 / 2
7 // 2
-7 // 2
7 % 3
-7 % 3
7.5 // 2
-7.5 % 2
7 % -3
1 / 0
1 // 0
1 % 0
0.1 + 0.2
1e16
1e15
123456789012345680.0
1e-5
0.0001
1e22
-0.0
1e400
100000.0 * 3
3 * 'ab'
'ab' * 0
'ab' * -1
[1] * 3
(1, 2) * 2
'a' + 'b'
'a' + 1
1 + 'a'
'a' ~ 1 ~ none ~ true ~ 1.0
[1] + [2]
[1] + (2,)
(1,) + (2,)
1 - 'a'
true + true
true * 3
'x' if true
'x' if false
'x' if false else 'y'
'x' if 0 else 'y' if 0 else 'z'
1 if 1 else 2 + 5
(1 if 0 else 2) + 5
1 and 2
0 and 2
1 or 2
0 or ''
none or 'x'
1 or 0 and 0
not 1 == 2
not (1 == 2)
1 == 1.0
1 == true
'1' == 1
none == false
[1, 2] == [1, 2]
[1, 2] == (1, 2)
{'a': 1} == {'a': 1.0}
1 != 2
1 < 2 < 3
1 < 3 < 2
3 > 2 >= 2 == 2
1 < 'a'
none < 1
'a' < 'b'
'B' < 'a'
[1, 2] < [1, 3]
[1] < [1, 0]
(1,) < (2,)
'a' in 'abc'
'' in 'abc'
1 in [1, 2]
1 not in [1, 2]
'a' in {'a': 1}
1 in 'abc'
1 in 5
not 1 in [2]
'k' in d
'a' in undefined_name
undefined_name in [1]
1 in [2] or 'x'
1 ~ 2 + 3
1 + 2 ~ 3
2 * 3 ~ 4
'a' ~ 'b' * 2
[1, 2, 3]
[]
[1,]
(1, 2)
(1,)
()
(1)
1, 2
1,
{'a': 1, "b": [1, {'c': none}]}
{}
{1: 'a', 2.5: 'b', none: 'c', true: 'd'}
{'a': 1, 'a': 2}
{(1, 2): 3}
{[1]: 2}
['a', "it's", 'q"', 'b"\'']
['\n\t\\', 'é', '中', '\x7f', '\u200b']
[1.0, 1e100, true, none]
[undefined_name]
{'x': undefined_name}
[[[]]]
9223372036854775807
'%s' % 'x'
'%s %d' % ('a', 3)
'%5.2f|%-5s|%05d' % (3.14159, 'ab', 42)
'%(a)s' % {'a': 1}
'%r' % 'x'
'%%'  % ()
'%d' % 'x'
'%s' % ()
'%x %X %o' % (255, 255, 8)
'%e %g' % (12345.678, 0.00001)
'%+d % d' % (3, 3)
'%c' % 'x'
'%s %s' % [1, 2]
""")

# ---- attributes, items, slices ----
expressions(r"""
d.a
d['a']
d.missing
d.missing.more
d['missing']['more']
d.n.k[0]
d.n.k.0
d.n.k[-1]
d.n['k'][1]
d.items
d['items']
d.get('a')
d.get('zz')
d.get('zz', 'def')
d.get('zz', default='def')
d.keys()
d.values()
d.items()
d.keys() | list
d.items() | list
d | length
d.__class__
d._x
s.__class__
s.upper
s.nothing
s[0]
s[-1]
s[100]
s['a']
s[1.5]
u[0]
u[-1]
u[1:3]
u[::-1]
u | length
u[100]
s[1:3]
s[:3]
s[3:]
s[:]
s[-3:]
s[:-3]
s[::2]
s[::-1]
s[5:1]
s[5:1:-1]
s[::0]
s[none:2]
s['a':2]
l[0]
l[3]
l[-4]
l[1:]
l[::-1]
l[:-1]
l[-2:]
l[true]
l['append']
l[10:]
l.0
l.append(4)
l.pop()
d.update({})
d.pop('a')
l.sort()
l.length
(1, 2, 3)[1:]
(1, 2, 3)[0]
range(5)[1:3]
range(5)[-1]
range(5)
range(2, 5)
range(0, 10, 3)
range(5, 0, -2)
range(5) | list
range(3, 0) | list
range(0)  | length
range(1, 2, 0)
range(1000000)
range(2.0)
range('a')
nil.x
nil['x']
n.x
n[0]
undefined_name.x
undefined_name['x']
undefined_name[0]
undefined_name()
undefined_name.x()
undefined_name + 1
1 + undefined_name
undefined_name ~ 'x'
undefined_name == undefined_name
undefined_name == none
undefined_name | length
undefined_name | list
undefined_name | default('d')
undefined_name | string
undefined_name | upper
undefined_name | join(',')
undefined_name < 1
-undefined_name
undefined_name[1:]
undefined_name | int
undefined_name | float
undefined_name | tojson
undefined_name | trim
undefined_name | items | list
undefined_name | map('upper') | list
undefined_name | first
undefined_name | sort
undefined_name | replace('a', 'b')
s()
n()
d()
nil()
l.index(1)
l.index(9)
l.count(1)
l.copy()
d.copy()
(1, 2).index(2)
d.n.get('k')[1:]
{'a': {'b': 2}}.a.b
[1, 2][0]
'abc'[1]
'abc'.upper()[0]
messages[0]['role']
messages[0].role
messages[-1].content
messages[1:] | length
messages[::-1][0].role
messages[0].get('name', 'none')
messages[5].role
""")

# ---- string methods ----
METHODS = r"""
upper() lower() title() capitalize() swapcase() casefold() strip() lstrip() rstrip() strip('Hd') lstrip('He')
rstrip('dl') strip('') split() split('o') split('o',1) split(None,1) split(maxsplit=1) split(sep='l') split('')
rsplit() rsplit('o',1) rsplit('l',1) rsplit(None,1) splitlines() splitlines(true) startswith('He') startswith('x')
startswith(('x','He')) startswith('llo',2) endswith('ld') endswith(('a','b')) endswith('') replace('l','L')
replace('l','L',1) replace('','-') replace('l','') find('o') find('zz') find('o',5) rfind('o') index('o')
index('zz') rindex('l') count('l') count('') count('l',3) isdigit() isalpha() isalnum() isspace() isupper()
islower() istitle() isnumeric() isdecimal() isidentifier() isascii() zfill(15) center(20) center(21,'*') ljust(15,'.')
rjust(15) removeprefix('He') removesuffix('ld') removeprefix('x') partition('o') rpartition('o') partition('zz')
rpartition('zz') expandtabs(4) join(['a','b']) join([1]) join('abc') join([]) format() strip(1) split(1)
startswith(1) nope() upper(1) find() zfill('a') replace('a') isprintable() format_map({}) startswith('o',4,5) endswith('o',0,5)
""".split()
for method in METHODS:
    for var in ("s", "u", "ws", "e", "multi"):
        case("{{ %s.%s }}" % (var, method))
        case("{{ [%s.%s] }}" % (var, method))
for text in ("12", "a1", "Ab Cd", "AB", "ab", " ", "x_y", "-42", "+7", "a\\tb", "hello world foo", "they're bill's"):
    for method in ("isdigit()", "isalpha()", "isalnum()", "isspace()", "isupper()", "islower()", "istitle()",
                   "isidentifier()", "zfill(6)", "title()", "capitalize()", "swapcase()", "expandtabs()", "isnumeric()",
                   "split(' ', 1)", "rsplit(' ', 1)", "partition(' ')", "upper()"):
        case("{{ ['%s'.%s] }}" % (text.replace("'", "\\'"), method))

# ---- formats ----
for spec in ("{}", "{0}", "{:>5}", "{:<5}|", "{:^7}|", "{:*^7}", "{:05}", "{!r}", "{!s}", "{:.2f}", "{:d}", "{:x}",
             "{:,}", "{:+}", "{:e}", "{:%}", "{:10.3f}|", "{:s}", "{:.2}", "{:#x}", "{:b}", "{:o}", "{:_}", "{:g}",
             "{:>{1}}", "{0} {0}", "{1}", "{x}", "{{}}", "{", "}", "{:z^5}", "{:=+6}", "{:c}"):
    for value in ("42", "-7", "3.14159", "'text'", "1234567", "true", "none", "[1]", "0.0", "1e20"):
        case("{{ '%s'.format(%s, 8) }}" % (spec, value))
expressions(r"""
'{a} {b}'.format(a=1, b='x')
'{} {}'.format(1)
'{d[a]}'.format(d=d)
'{d.a}'.format(d=d)
'{0[0]} {0[1]}'.format(l)
'{} {0}'.format(1)
'{a.__class__}'.format(a=1)
'%s and %s'|format('a', 'b')
'%(x)s'|format(x=1)
'%s'|format
'%.3s|%10s|%-10s|' % ('abcdef', 'r', 'l')
'%5d|%-5d|%05.1f' % (1, 2, 3.14)
'%i' % 3.7
'%s' % none
'%s' % [1]
'%s' % {'a': 1}
'%*d' % (5, 3)
""")

# ---- filters ----
FILTERS = r"""
abs attr('upper') batch(2) capitalize center center(20) count default('x') d('x') default('x',true) dictsort escape e
filesizeformat first float float('q') forceescape format groupby('g') indent indent(2) indent(2,true) indent('>>')
indent(2,true,true) indent(width=1,first=true) int int(5) int(base=16) int(0,2) items join join(',') join(', ','name') last
length list lower map('upper') map(attribute='name') map(attribute='zz',default='D') map max max(attribute='v') min
min(attribute='name') pprint reject reject('odd') rejectattr('v') rejectattr('v','equalto',2) replace('o','0')
replace('o','0',1) replace('a','b',count=0) reverse round round(1) round(1,'floor') round(method='ceil') safe select select('odd')
selectattr('v') selectattr('v','gt',1) selectattr('zz','defined') slice(2) sort sort(true) sort(reverse=true)
sort(attribute='v') sort(attribute='name') sort(case_sensitive=true) sort(attribute='g,v') string striptags sum
sum(attribute='v') sum(start=10) title tojson tojson(indent=2) tojson(2) tojson(separators=(',',':'))
tojson(sort_keys=true) tojson(ensure_ascii=true) tojson(indent=4,sort_keys=true) trim trim('H') truncate truncate(5)
truncate(5,true) truncate(5,true,'!') truncate(5,false,'..',0) unique unique(attribute='g') unique(true) upper urlencode
wordcount wordwrap(5) nosuchfilter dictsort(by='value') dictsort(reverse=true) dictsort(true) dictsort(by='x')
""".split()
for name in FILTERS:
    if name.startswith(("pprint", "wordwrap")):
        continue
    listed = name.split("(")[0] in ("batch", "slice", "map", "select", "reject", "selectattr", "rejectattr", "unique",
                                    "items", "reverse")
    for var in ("s", "u", "ws", "e", "n", "neg", "f", "t", "nil", "l", "words", "mixed", "d", "rows", "nest", "pairs",
                "q", "multi", "empty", "ed", "'12.7'", "'0x1f'", "1e20", "(1,2)", "2.675"):
        if listed and not (name == "reverse" and var in ("s", "u", "ws", "e", "q", "multi")):
            case("{{ %s|%s|list }}" % (var, name))
        else:
            case("{{ %s|%s }}" % (var, name))
expressions(r"""
s|upper|lower|title
-1|abs
-n|abs
l|sort|first
l|map('string')|join('-')
rows|map(attribute='name')|map('upper')|list
rows|selectattr('name', 'in', ['x', 'z'])|map(attribute='v')|list
rows|selectattr('v', 'ge', 2)|list|length
rows|rejectattr('v', '==', 2)|map(attribute='name')|join
rows|groupby('g')|map('first')|list
rows|groupby('g', case_sensitive=true)|map('first')|list
rows|groupby('zz', default='none')|list
rows|sort(attribute='v', reverse=true)|map(attribute='v')|list
rows|map('length')|list
rows|map('tojson')|join(';')
rows|map(attribute='n.k')|list
pairs|map('first')|list
pairs|map('last')|list
pairs|map(attribute=0)|list
pairs|map(attribute='1')|list
words|map('replace', 'A', 'Z')|list
words|select('equalto', 'A')|list
words|select('in', ['A', 'b'])|list
words|reject('in', ['A', 'b'])|list
words|select('string')|list
mixed|select('number')|list
mixed|select('none')|list
mixed|map('default', 'x')|list
l|select|list
[0, 1, '', 'a']|select|list
[0, 1, '', 'a']|reject|list
l|map('nosuch')|list
l|select('nosuch')|list
l|selectattr|list
l|batch(2, 'x')|list
l|slice(2, 'x')|list
range(10)|slice(3)|list
range(7)|batch(3)|map('list')|list
l|length > 2
l|length == 3 and 'y' or 'n'
(l|length) + 1
1 + l|length
'abc'|length ~ 'x'
not l|length
l|join(', ') ~ '.'
d|dictsort|first
d|items|list
d|items|first
d|list
d|length
d|join
d|first
d|tojson
d|string
nil|tojson
1.0|tojson
1e20|tojson
q|tojson
'\u2028\x00\x1f\x7f/'|tojson
u|tojson
'😀'|tojson(ensure_ascii=true)
{1: 2, none: 3, true: 4, 1.5: 5}|tojson
{'a': [], 'b': {}, 'c': [[]], 'd': [1, {'e': none}]}|tojson(indent=2)
{'a': [1, 2]}|tojson(indent='--')
{'a': [1, 2]}|tojson(indent=0)
{'b': 1, 'a': 2}|tojson(sort_keys=true)
{(1, 2): 3}|tojson
range(3)|tojson
d.items()|tojson
(1, 2)|tojson
namespace(a=1)|tojson
'1,234'|int
' 42 '|int
'4_2'|int
'1e3'|int
'0b11'|int(0, 0)
'zz'|int(base=36)
'ff'|int(base=16)
true|int
2.9|int
-2.9|int
[]|int
[]|int(7)
'inf'|float
'nan'|float
'1e3'|float
' 1.5 '|float
'x'|float
2.5|round
3.5|round
2.675|round(2)
1234.5|round(-2)
42|round
42.55|round(1, 'ceil')
-1.5|round
7|round(1)
1e300|round(2)
'abc'|reverse
l|reverse|list
'%s-%s'|format(1, 2)
1000|filesizeformat
123456789|filesizeformat
123456789|filesizeformat(true)
1|filesizeformat
'a b&c/d?é'|urlencode
{'a b': 'c&d', 'x': 1}|urlencode
[('a', 1), ('b', 'x y')]|urlencode
'<b>x</b> &amp; <i>y</i>'|striptags
"foo bar baz qux www"|truncate(9, leeway=0)
"foo bar baz"|truncate(9)
"foo bar baz qux"|truncate(11)
"foo bar baz qux"|truncate(11, False, '...', 0)
'hello-world foo_bar (baz) {qux} [x] <y>'|title
"they're"|title
'hELLO wORLD'|capitalize
['b', 'a', 'B', 'A']|sort
['b', 'a', 'B', 'A']|sort(case_sensitive=true)
['b', 'a', 'B', 'A']|unique|list
['b', 'a', 'B', 'A']|unique(true)|list
['b', 'a']|max
[]|max
[]|first
[]|last
[1, 'a']|sort
[3, 1.5, 2]|sort
[true, false]|sort
[[2], [1, 5], [1]]|sort
[1, 2]|sum
[1.5, 2]|sum
['a']|sum
[[1], [2]]|sum(start=[])
[1, 2]|join(d='-')
[1, none, true, 1.0, [1]]|join('|')
['<', '>']|join('&')
d|attr('a')
d|attr('get')('a')
s|attr('nope')
s|default
nope|default
nope|default('a', false)
''|default('a')
''|default('a', true)
none|default('a')
none|default('a', boolean=true)
0|d(1, true)
nope.x|default('a')
d.zz|default('a')
d.zz.y|default('a')
s|wordcount
'  a b  c '|wordcount
s|indent(first=true)
''|indent
multi|indent(3)
multi|indent(3, blank=true)
multi|trim|indent(2, true)
'a\r\nb'|indent
s|center(3)
'x'|center(4) ~ '|'
'x'|center(5) ~ '|'
s|e
q|escape
q|e|length
q|safe
s|string|length
l|string
none|string
1.5|string ~ 'x'
l|count
n|length
nil|length
generator|list
l|map('abs')|length
l|map('abs')|string|length > 5
l|map('abs')|first
l|map('abs')|last
l|reverse|first
l is iterable
(l|map('abs')) is iterable
(l|map('abs')) is sequence
(l|map('abs')) == (l|map('abs'))
s|trim('d')|upper
s | replace("l", "L") | replace("o", "0", 1)
n|replace(7, 8)
s|lower()|upper()
s|first|upper
(s|first).upper()
s|list|join('.')
u|list
u|first
u|last
u|reverse
u|upper
u|lower
u|title
u|capitalize
u|center(20)
'straße'|upper
'ÀÉÎ'|lower
'привет мир'|title
'ΑΒΓ'|lower
'ñandú'|capitalize
""")

# ---- tests ----
TESTS = r"""
defined|undefined|none|boolean|integer|float|number|string|mapping|sequence|iterable|callable|true|false|odd|even
divisibleby 2|divisibleby(3)|eq 7|equalto 7|==(7)|ne 7|lt 8|gt 8|le 7|ge 7|greaterthan 1|lessthan 1|in [7, 'a']
in 'abc'|sameas none|sameas true|lower|upper|escaped|filter|test|nosuchtest|not defined|not none|not string
not in [7]|in l|eq none|not mapping
""".replace("\n", "|").split("|")
for test in TESTS:
    if not test:
        continue
    for var in ("s", "e", "n", "f", "t", "nil", "l", "d", "nope", "undefined_name.x", "(1, 2)", "range(3)", "0", "false",
                "'abc'", "'ABC'", "'upper'", "l|map('abs')", "d.items()", "namespace()", "'defined'"):
        case("{{ %s is %s }}" % (var, test.strip()))
expressions(r"""
n is odd and n is not even
n is divisibleby 7 or false
not n is odd
n is odd ~ 'x'
'a' if s is string else 'b'
s is string and l is not string
n is not divisibleby(2) is true
n is odd is even
d.a is defined
d.zz is defined
d.zz is not defined
d['zz'] is none
s is in(['Hello World'])
s.upper is callable
n is eq(7)
'x' is filter
'tojson' is filter
l is sequence and l is not mapping and l is not string
raise_exception is defined
strftime_now is defined
range is callable
1 is sameas(1)
1 is number
true is number
true is integer
1.0 is integer
""")

# ---- statements and whitespace ----
for text in [
    "{% if true %}a{% endif %}", "{% if false %}a{% else %}b{% endif %}",
    "{% if false %}a{% elif true %}b{% else %}c{% endif %}", "{% if nope %}a{% elif n %}b{% endif %}",
    "{% if n > 3 and s %}x{% endif %}", "{% if not l %}x{% else %}y{% endif %}", "{% if %}x{% endif %}",
    "{% if true: %}x{% endif %}", "{% if true %}", "{% endif %}", "{% else %}", "{% nosuch %}", "{% %}", "{{ }}",
    "{{", "{%", "{{ 'x }}", "{{ 1 2 }}", "{{ (1 }}", "{{ [1 }}", "{{ 1 ] }}", "{{ a.  }}", "{{ a| }}", "{{ $ }}",
    "{{ a is }}", "{{ not }}", "{{ 1 if }}", "{{ [1 2] }}", "{{ {1} }}", "{{ f(a=1, 2) }}", "{{ f(**d, a=1) }}",
    "a {# comment #} b", "a {#- comment -#} b", "a\n{# comment #}\nb", "a\n  {# c #}  \nb", "{#c#}\n\nb", "{# #}x{# #}",
    "  {% if true %}\n  x\n  {% endif %}\n  y", "  {%+ if true %}x{% endif %}", "{% if true -%}\n  x\n{%- endif %}",
    "a\n{%- if true %}\nb\n{% endif -%}\n c", "{% if true +%}\nx{% endif %}", "{{- 1 -}}", " {{- 1 -}} ", " {{ 1 }} \n x",
    "  {{ 1 }}\n", "a\n\n", "a\n\n\n", "\na", "a\r\nb\rc\n", "{% raw %}{{ x }}{% endraw %}", "{% raw -%}  {{ x }}  {%- endraw %}",
    "a\n{% raw %}\n b {% y %}\n{% endraw %}\nc", "{%- raw %} x {% endraw -%}  y", "{% raw %}x", "x {%raw%}{#{%endraw%} y",
    "  {% raw %}  x\n  {% endraw %}\n z", "{%- if true -%}\n\n x \n\n{%- endif -%}\n\n", "<\u3000{%- if true %}x{% endif %}>",
    "{{ '{{' }} {{ '}}' }} {{ '%}' }}", "{{ {'a': {'b': 1}}}}", "{{ {'a': {}} }}", "{%if true%}x{%endif%}",
    "{% for i in l %}{{ i }}{% endfor %}", "{% for i in l %}{{ i }},{% else %}none{% endfor %}",
    "{% for i in empty %}{{ i }}{% else %}none{% endfor %}", "{% for i in nope %}{{ i }}{% else %}none{% endfor %}",
    "{% for i in n %}x{% endfor %}", "{% for i in nil %}x{% endfor %}", "{% for c in s %}{{ c }}.{% endfor %}", "{% for c in u %}{{ c }}.{% endfor %}",
    "{% for k in d %}{{ k }}{% endfor %}", "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in d|items %}{{ k }}={{ v }};{% endfor %}", "{% for k, v in d|dictsort %}{{ k }}={{ v }};{% endfor %}",
    "{% for a, b in nest %}{{ a }}{{ b }}{% endfor %}", "{% for a, b, c in nest %}{{ a }}{% endfor %}", "{% for a, b in l %}{{ a }}{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for (a, b) in pairs %}{{ a }}{{ b }}{% endfor %}",
    "{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}",
    "{% for i in l %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }};{% endfor %}", "{% for i in l %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}",
    "{% for i in l %}{{ loop.cycle('a', 'b') }}{% endfor %}", "{% for i in [1,1,2,2,1] %}{{ loop.changed(i) }}{% endfor %}",
    "{% for i in [1,1,2] %}{% if loop.changed(i) %}{{ i }}{% endif %}{% endfor %}", "{% for i in l %}{{ loop }}{% endfor %}", "{% for i in l %}{{ loop.nope }}{% endfor %}",
    "{% for i in l if i > 1 %}{{ loop.index }}:{{ i }}/{{ loop.length }};{% endfor %}", "{% for i in l if i > 5 %}x{% else %}none{% endfor %}",
    "{% for i in l if i != 3 %}{{ loop.first }}{{ loop.last }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}",
    "{% for i in range(3) %}{% for j in range(2) %}{{ loop.index }}{{ i }}{{ j }} {% endfor %}{{ loop.index }}{% endfor %}",
    "{% for i in range(3) %}{% set outer = loop %}{% for j in range(2) %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}",
    "{% for i in range(10) %}{% if i == 3 %}{% continue %}{% endif %}{% if i == 6 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in l %}{% break %}{% else %}none{% endfor %}", "{% break %}", "{% for i in l recursive %}{{ i }}{% endfor %}",
    "{% for x in nest recursive %}[{% if x is iterable %}{{ loop(x) }}{% else %}{{ x }}@{{ loop.depth }}{% endif %}]{% endfor %}",
    "{% for i in l %}{{ loop(i) }}{% endfor %}", "{% for i in l|map('abs') %}{{ i }}{{ loop.last }}{% endfor %}", "{% for i in l|sort %}{{ i }}{% endfor %}",
    "{% for i in l|reverse %}{{ i }}{{ loop.length }}{% endfor %}", "{% for i in (1, 2) %}{{ i }}{% endfor %}", "{% for i in 1, 2 %}{{ i }}{% endfor %}",
    "{% for i in [1, 2] + [3] %}{{ i }}{% endfor %}", "{% for i in l[1:] %}{{ i }}{% endfor %}", "{% for i in l if true else [] %}x{% endfor %}",
    "{% for i in (l if true else []) %}{{ i }}{% endfor %}", "{% for i in l %}{{ i }}{% endfor %}{{ i }}", "{% set i = 9 %}{% for i in l %}{{ i }}{% endfor %}{{ i }}",
    "{% set x = 1 %}{{ x }}", "{% set x = 1, 2 %}{{ x }}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a, b = l %}x", "{% set (a, b) = (1, 2) %}{{ a }}{{ b }}",
    "{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}", "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% for i in l %}{{ y }}{% set y = i %}{{ y }};{% endfor %}{{ y }}", "{% set ns = namespace(x=1) %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace() %}{% set ns.y = 2 %}{{ ns.y }}{{ ns.z }}{{ ns['y'] }}", "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}", "{% set d.x = 1 %}", "{% set nope.x = 1 %}",
    "{% set ns = namespace(a=1) %}{{ ns }}", "{% set ns = namespace(a=1) %}{{ ns is mapping }}{{ ns.a is defined }}{{ ns.b is defined }}", "{% set ns = namespace(l=[]) %}{% for i in l %}{% set ns.l = ns.l + [i * 2] %}{% endfor %}{{ ns.l }}",
    "{% set ns.a = 1 %}", "{% set x %}a{{ 1 }}b{% endset %}{{ x }}", "{% set x | upper %}abc{% endset %}{{ x }}", "{% set x | trim | replace('b', 'c') %} abc {% endset %}[{{ x }}]",
    "{% set ns = namespace() %}{% set ns.x %}abc{% endset %}{{ ns.x }}", "{% set x %}{% set y = 1 %}{{ y }}{% endset %}{{ x }}{{ y }}", "{% set true = 1 %}", "{% set 1 = 2 %}", "{% set x = %}", "{% set x 1 %}",
    "{% set loop = 1 %}{{ loop }}", "{% for loop in l %}{{ loop }}{% endfor %}", "{% set x = y = 1 %}", "{% set ns = namespace(a=1) %}{% set ns.a, b = 2, 3 %}{{ ns.a }}{{ b }}",
    "{% with %}x{% endwith %}", "{% with a=1, b=2 %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% set a = 1 %}{% with a=2, b=a %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% with a=1 %}{% set c = 2 %}{% endwith %}{{ c }}",
    "{% macro m() %}x{% endmacro %}{{ m() }}", "{% macro m(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=1, a=2) }}{{ m() }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}",
    "{% macro m(a) %}{{ a }}{{ varargs }}{% endmacro %}{{ m(1, 2, 3) }}", "{% macro m(a) %}{{ a }}{{ kwargs }}{% endmacro %}{{ m(1, x=2) }}", "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}", "{% macro m(a=1, b) %}{% endmacro %}",
    "{% macro m(a, b=a * 2, c=b + 1) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}{{ m(1, c=9) }}", "{% set x = 1 %}{% macro m() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ m() }}", "{% macro m() %}{% set x = 1 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}",
    "{% macro f(n) %}{% if n > 0 %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}", "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "{{ m() }}{% macro m() %}x{% endmacro %}", "{% macro m() %}  x  {% endmacro %}[{{ m()|trim }}]",
    "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(x=1) ~ m('a') }}", "{% macro m() %}x{% endmacro %}{{ m }}", "{% macro m(a, b) %}{% endmacro %}{{ m.name }}{{ m.arguments }}", "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(1)|length }}",
    "{% macro m() %}{{ caller() }}!{% endmacro %}{% call m() %}body{% endcall %}", "{% macro m() %}{{ caller(1, 2) }}!{% endmacro %}{% call(a, b) m() %}{{ a }}-{{ b }}{% endcall %}", "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}{% call m() %}{% endcall %}", "{% macro m() %}x{% endmacro %}{% call m() %}b{% endcall %}",
    "{% macro m(x) %}<{{ x }}>{{ caller() }}{% endmacro %}{% for i in l %}{% call m(i) %}{{ i * 2 }}{{ loop.index }}{% endcall %}{% endfor %}", "{% call 1 %}{% endcall %}", "{% macro m() %}{{ l }}{% endmacro %}{% for l in [1, 2] %}{{ m() }}{% endfor %}",
    "{% macro outer() %}{% macro inner(x) %}({{ x }}){% endmacro %}{{ inner(1) }}{% endmacro %}{{ outer() }}", "{% for i in l %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}", "{% macro m(a) %}{{ a is defined }}{% endmacro %}{{ m() }}", "{% macro m(a) %}{{ a.b }}{% endmacro %}{{ m() }}",
    "{% macro m(*args) %}{% endmacro %}", "{% macro m(a, a) %}{{ a }}{% endmacro %}", "{{ m(*[1, 2], **{'c': 3}) }}{% macro m(a) %}{% endmacro %}", "{% macro m(a, b, c=0) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(*[1, 2], **{'c': 3}) }}{{ m(*[1, 2]) }}{{ m(1, *[2, 3]) }}",
    "{% filter upper %}abc{{ s }}{% endfilter %}", "{% filter replace('a', 'b')|upper %}aaa{% endfilter %}", "{% filter trim %}  {% if true %}x{% endif %}  {% endfilter %}", "{% filter nosuch %}{% endfilter %}", "{% filter indent(2) %}a\nb\n{% endfilter %}",
    "{% do l %}x", "{% do l.append(1) %}{{ l }}", "{% print 1, 'a' %}", "{% autoescape false %}{{ q }}{% endautoescape %}", "{% block a %}x{% endblock %}", "{% block a %}{{ s }}{% endblock a %}y", "{% set v = 1 %}{% block b %}{{ v }}{% endblock %}",
    "{% for i in l %}{% block c scoped %}{{ i }}{% endblock %}{% endfor %}", "{% for i in l %}{% block c %}{{ i }}{% endblock %}{% endfor %}", "{% generation %}x{% endgeneration %}", "{% for i in l %}{%- generation -%} {{ i }} {%- endgeneration -%} {% endfor %}", "{% generation %}{% set a = 1 %}{% endgeneration %}{{ a }}",
    "{{ raise_exception('no') }}", "{% if false %}{{ raise_exception('no') }}{% endif %}ok", "{{ strftime_now('%Y-%m-%d') }}", "{{ strftime_now('%d %b %Y %H:%M:%S %p %A %B %j %y %I %% %e %a') }}", "{{ strftime_now('%-d/%-m %F %T') }}", "{{ strftime_now() }}",
    "{{ namespace(1) }}", "{{ dict(a=1, b='x') }}", "{{ dict([('a', 1)]) }}", "{{ dict({'a': 1}, b=2) }}", "{{ dict(**d) }}", "{{ dict(1) }}", "{{ cycler('a', 'b') is defined }}", "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.next() }}",
    "{% set j = joiner('|') %}{{ j() }}a{{ j() }}b{{ j() }}c", "{% set j = joiner() %}{{ j() }}a{{ j() }}b", "{{ range(*[1, 4])|list }}", "{{ 'x' | nosuch }}", "{% if false %}{{ 'x' | nosuch }}{% endif %}ok", "{{ ('x' | nosuch) if false else 'ok' }}", "{% if true %}{{ 'x' | nosuch }}{% endif %}", "{{ 'x' is nosuch }}", "{% if false %}{{ 'x' is nosuch }}{% endif %}ok",
    "{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}", "{% from 'x' import y %}", "{% set g = l|map('abs') %}{% for i in g %}{{ i }}{% endfor %}{% for i in g %}{{ i }}{% endfor %}", "{% set g = l|select('odd') %}{{ g|list }}{{ g|list }}", "{% set g = l|map('abs') %}{{ g|first }}{{ g|list }}",
    "{% set ns = namespace(stop=false) %}{% for i in [1,2,3,4] if not ns.stop %}{{ i }}{% if i == 2 %}{% set ns.stop = true %}{% endif %}{% endfor %}", "{% for m in messages %}{% if loop.first and m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}{{ loop.index0 }}{% endfor %}",
    "{% for m in messages[::-1] %}{% set index = (messages|length - 1) - loop.index0 %}{{ index }}{{ m.role }}{% endfor %}", "{% for m in messages|selectattr('role', 'equalto', 'user') %}{{ m.content }}{% endfor %}", "{% set first, rest = messages[0], messages[1:] %}{{ first.role }}{{ rest|length }}",
    "{%- for message in messages %}\n    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}\n        {{- message.role }}\n    {%- endif %}\n{%- endfor %}", "{% for m in messages -%}\n  {{ m.role }}\n{% endfor -%}\nend", "{{ messages|map(attribute='role')|join(' ') }}",
    "{{ messages }}", "{{ messages|tojson(indent=1) }}", "{{ d.n }}", "{% for k in d if k is string %}{{ k }}{% endfor %}", "{% for k, v in d.items() if v is not mapping %}{{ k }}{{ loop.last }}{% endfor %}", "{% if 'x' in (d.values()|list) %}y{% endif %}", "{% if 'a' in d.keys() %}y{% endif %}", "{% if 'x' in d.values() %}y{% endif %}",
    "{% if (messages|length) > 2 and messages[0]['role'] == 'system' %}{% set sys = messages[0]['content'] %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}{{ sys }}{{ rest|length }}", "{{ x.y is defined }}", "{{ d.n.zz is defined and d.n.zz.q }}", "{{ (d.n.zz or {}).q }}", "{{ (d.get('zz') or {}).get('q', 5) }}",
    "{{ 'a\\nb'.split('\\n')[-1] }}", "{{ '<think>x</think>y'.split('</think>')[-1].lstrip('\\n') }}", "{{ ('a', 'b')|join }}", "{{ d.items()|list|length }}", "{{ d.items()|first }}", "{{ d.items()[0] }}", "{{ d.keys()[0] }}", "{{ d.values()|sum if false else 1 }}", "{{ [d.keys()] }}",
    "{{ [l|map('abs')]|length }}", "{{ loop }}", "{% set x = [1, [2, 'a']] %}{{ x }}{{ x[1][1] }}", "{% if l == [3, 1, 2] %}y{% endif %}", "{% if d %}y{% endif %}{% if ed %}n{% endif %}{% if nil %}n{% endif %}{% if 0.0 %}n{% endif %}{% if 'a' %}y{% endif %}{% if range(0) %}n{% endif %}{% if d.items() %}y{% endif %}{% if ed.items() %}n{% endif %}",
    "{% if l|map('abs') %}y{% endif %}{% if empty|map('abs') %}y{% endif %}", "{% set s = s|lower %}{{ s }}", "{% set messages = messages[1:] %}{{ messages|length }}", "{% for m in messages %}{% set messages = [] %}{{ m.role }}{% endfor %}{{ messages|length }}",
    "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}", "{{- 'x' }}\n{{ 'y' -}}\n", "{% set x = 'a' if n > 3 else 'b' %}{{ x }}", "{% set x = 'a' if n > 30 %}[{{ x }}]{{ x is defined }}", "{{ n if n is defined else 'x' }}", "{{ 1 if true else raise_exception('x') }}",
    "{{ [1, 2, 3]|map('string')|map('upper')|join(', ', attribute=none) }}", "{% for a in [[1, 2], [3, 4]] %}{% for b in a %}{% if b == 3 %}{% break %}{% endif %}{{ b }}{% endfor %}|{% endfor %}", "{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ loop.index }}{{ loop.last }}{% endfor %}",
    "\n{% if true %}\n\n  a\n{% endif %}\n\nb\n", "x{% if true %} y {% endif %} z", "  {% set a = 1 %}  \n  {% set b = 2 %}\nx", "\t{%- set a = 1 -%}\n\t x", "{% if true %}  \n  a{% endif %}", "{{ 1 }}  {% if true %}a{% endif %}", "a  {% if true %}b{% endif %}", "a\n  {{ 1 }}\n", "a\n  {#- x #}\nb", "a\n  {#+ x #}\nb", "a {# x +#}\nb", "{# {{ x }} {% y %} #}z",
    "{{ 1\n+\n2 }}", "{%\nif\ntrue\n%}x{%\nendif\n%}", "{{'a'}}{{\"b\"}}", "{{ 'a' 'b' ~ 'c' }}", "{{ a if b is defined and c is defined else 'none' }}", "{{ not nope }}", "{{ nope is not defined or nope == 1 }}", "{{ (n, s)[1] }}", "{{ [n, s][::-1] }}", "{{ {'a': n}['a'] + 1 }}", "{{ n.__class__.__name__ }}", "{{ ''.__class__.__mro__ }}", "{{ s.format.__globals__ }}",
    "{{ range.__init__ }}", "{{ namespace.__init__ }}", "{{ cycler.__init__ }}", "{{ (1).bit_length() }}", "{{ 5 }}", "{{ lipsum }}", "{{ 3.0.is_integer() }}",
]:
    case(text)

# ---- pairs of operators ----
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and", "or"]
for a, b in itertools.product(OPERATORS, OPERATORS):
    case("{{ 7 %s 2 %s 3 }}" % (a, b))
for a, x, y in itertools.product(["+", "-", "*", "/", "//", "%", "**", "==", "<", "<=", "in"],
                                 ["7", "2.5", "'ab'", "[1]", "(1,)", "{'a': 1}", "none", "true", "nope"],
                                 ["2", "'b'", "[1]", "none", "false", "nope"]):
    case("{{ %s %s %s }}" % (x, a, y))


# ---- markup: what comes of "safe" and "escape" is text that escapes what it meets ----
MARKUP = ["('<b>'|safe)", "('<'|e)", "(q|e)", "(' a<b c \\n d'|safe)", "('%s'|safe)", "('{}'|safe)", "''|safe", "('42'|safe)"]
ON_MARKUP = """X|X + '<'|'<' + X|X + X|X * 2|2 * X|X + none|X + 1|X ~ '<'|'<' ~ X|X[0]|X[1:]|X[::-1]|X[:2]|X[99]|-X|X % '<'|X % X
X % ('<',)|X % ['<']|X % {'a': '<'}|X % 5|X % none|'%s' % X|'%r' % (X,)|'{}'.format(X)|'{!r}'.format(X)|'{:>5}'.format(X)
X.upper()|X.lower()|X.title()|X.capitalize()|X.swapcase()|X.casefold()|X.strip()|X.lstrip()|X.rstrip()|X.strip('<')|X.zfill(9)
X.center(9)|X.ljust(9, '.')|X.rjust(9, '<')|X.center(9, '<')|X.expandtabs()|X.removeprefix('<')|X.removesuffix('>')
X.replace('b', '<')|X.replace('<', '>', 1)|X.replace('<', '<'|safe)|'<b>'.replace('b', X)|'<b>'.replace(X, 'y')|X.split()|X.split('b')
X.split('b')[0]|X.rsplit('b', 1)[0]|X.splitlines()[0]|X.partition('b')|X.rpartition('b')[0]|X.join(['<', 1, q|e])|X.join('<>')
'<'.join([X, 'a'])|X.format('<')|X.format(X)|X.format(5)|X.format([q])|X.format_map({})|X.find('b')|X.count('<')|X.index('b')|X.startswith('<')
X.endswith(('x', '>'))|'<b>'.startswith(X)|X.isalpha()|X.isdigit()|X.islower()|X.striptags()|X.unescape()|X.escape('<')|X.nope|X.nope is defined
X|upper|X|lower|X|title|X|capitalize|X|trim|X|trim('<')|X|replace('b', '<')|X|replace('<', X)|'<b>'|replace('b', X)|X|string|X|safe|X|e
X|escape|X|forceescape|X|e|e|X|safe|e|X|e|forceescape|X|striptags|X|center(9)|X|indent|X|indent(2, true)|X|truncate(3)|X|truncate(3, true, '<', 0)
X|truncate(3, true, '', 0)|'<b>abc'|truncate(3, true, X, 0)|X|wordcount|X|length|X|count|X|list|X|first|X|last|X|reverse|X|urlencode|X|int|X|float
X|tojson|[X]|tojson|{X: X}|tojson|X|default('a')|''|default(X, true)|nope|default(X)|X|join('<')|[X, '<']|join('<')|[X, '<']|join(X)|[X]|list|[X]|first
[X, 'a']|sort|[X, X]|unique|list|[X]|map('upper')|first|[X]|map('string')|first|['<']|map('e')|first|['<']|map('safe')|list|[X]|select('string')|list
[X]|reject('escaped')|list|[[X]]|map(attribute=0)|list|[X]|batch(2, X)|list|X|format('<')|X|format(X)|X|format(a='<')|'%s<'|format(X)|X|filesizeformat
X|select|list|X|items|X|abs|X|round|X|attr('upper')|X|dictsort|X|sum|X|min|X|groupby('a')|X == '<b>'|'<b>' == X|X != '&lt;'|X < 'z'|X > '<'|X <= X
X in ['<b>', '&lt;']|'<b>' in [X]|'b' in X|X in '<b>&lt;'|X in {X: 1}|{X: 1}['<b>']|{'<b>': 1}[X]|{'<b>': 1}.get(X)|{'<b>': 1}.get('q', X)
X is string|X is escaped|X is iterable|X is sequence|X is mapping|X is defined|X is lower|X is upper|X is sameas('<b>')|X is eq('<b>')|X is in(['<b>'])
X is number|X is none|X is callable|X is filter|not X|X and 1|X or 1|X if X else 2|X ~ X|[X]|(X,)|{'k': X}|dict(k=X)|namespace(k=X).k|cycler(X, 1).next()
joiner(X)()|range(X)|[X] + ['<']|[X] * 2|X if 1 else 2|(X ~ 'a') is escaped|(X + 'a') is escaped|(X|upper) is escaped|(X|string) is escaped
(X|title) is escaped|(X|replace('a', 'b')) is escaped|(X|join) is escaped|(X|tojson) is escaped|(X|first) is escaped|(X|reverse) is escaped
(X.split()|first) is escaped|X[0] is escaped|(X % 1) is escaped|X.format(1) is escaped|(X|indent) is escaped|(X|truncate(2, true, '.', 0)) is escaped
('a' % X) is escaped|(X|default) is escaped|(X|striptags) is escaped|(X|center) is escaped|(X|trim) is escaped|(X|list|first) is escaped"""
for x in MARKUP:
    for line in ON_MARKUP.split("\n"):
        for expression in line.replace("|X", "\0X").replace("|'", "\0'").replace("|[", "\0[").replace("|(", "\0(").replace(
                "|-", "\0-").replace("|{", "\0{").replace("|2 *", "\0002 *").replace("|nope|", "\0nope|").replace(
                "|not X", "\0not X").replace("|dict(", "\0dict(").replace("|namespace", "\0namespace").replace(
                "|cycler", "\0cycler").replace("|joiner", "\0joiner").replace("|range", "\0range").split("\0"):
            case("{{ " + expression.replace("X", x) + " }}")
for spec in ["%s", "%r", "%5s|", "%-5s|", "%.2s", "%d", "%5.1f", "%x", "%c", "%%", "%(a)s", "%s %s"]:
    for value in ["'<'", "('<'|safe)", "5", "2.5", "['<']", "('<', 1)", "{'a': '<'}", "none", "'7'", "nope"]:
        case("{{ ('<%s'|safe) %% %s }}" % (spec, value))
for spec in ["{}", "{:5}|", "{!r}", "{!s}", "{0} {0}", "{a}", "{0[0]}", "{0.upper}", "{:{}}", "{{}}"]:
    for value in ["'<'", "('<'|safe)", "5", "['<']", "a='<'", "'<', 6"]:
        case("{{ ('<%s'|safe).format(%s) }}" % (spec, value))
for text in [
    "{% set x = '<'|safe %}{{ x + '<' }}", "{% set x %}<{% endset %}{{ x is escaped }}{{ x|e }}", "{% set x | e %}<{% endset %}{{ x is escaped }}{{ x + '<' }}",
    "{% set x | upper %}<a>{% endset %}{{ x is escaped }}", "{% filter e %}<{% endfilter %}", "{% filter safe|upper %}<a{% endfilter %}",
    "{% macro m(a) %}{{ a }}<{% endmacro %}{{ m('<'|safe) is escaped }}{{ m('<'|safe)|e }}", "{% macro m(a) %}{{ a is escaped }}{% endmacro %}{{ m('<'|safe) }}",
    "{% macro m() %}{{ caller() is escaped }}{% endmacro %}{% call m() %}<{% endcall %}", "{% for c in '<b'|safe %}{{ c is escaped }}{{ c|e }}{% endfor %}",
    "{% for c in ['<'|safe] %}{{ c + '<' }}{% endfor %}", "{% set a, b = 'xy'|safe %}{{ a is escaped }}", "{{ \"Use '\"|safe + 'f' + \"': \" + {'a': 1}|tojson }}",
    "{% set ns = namespace(x='<'|safe) %}{% set ns.x = ns.x + '<' %}{{ ns.x }}", "{{ ['<', '>']|map('e')|join }}", "{{ ['<', '>']|map('e')|list }}",
    "{{ '<'|e|string|e }}", "{{ '<'|escape|escape }}", "{{ '<'|forceescape|forceescape }}", "{{ ('<'|e|string) ~ '<' }}", "{{ (['<'|safe]|first) + '<' }}",
    "{{ ('a'|safe) is sameas 'a' }}", "{% set x = 'a'|safe %}{{ x is sameas x }}", "{{ 'a,b'|safe|replace(',', '<') }}", "{{ messages[0].content|safe + '<' }}",
    "{{ q|safe ~ q }}", "{{ q|e ~ q }}", "{{ (q|e) + q }}", "{{ {'a': q|e}|tojson }}", "{{ [q|e] }}", "{{ d|string|safe + '<' }}", "{{ 5|safe + '<' }}", "{{ none|safe + '<' }}",
    "{{ nope|safe + '<' }}", "{{ nope|e + '<' }}", "{{ l|e + '<' }}", "{{ ('%s and %s'|safe)|format('<', '>'|safe) }}", "{{ ('<a href=\"%s\">'|safe) % q }}",
]:
    case(text)


def run(text):
    try:
        return [text, env.from_string(text).render(**copy.deepcopy(VARS))]  # the filter indent changes lists
    except RecursionError:
        return [text, None, "RecursionError"]
    except Exception as error:  # the class is what the test looks at
        return [text, None, type(error).__name__]


def main():
    seen, out = set(), []
    for text in cases:
        if text in seen:
            continue
        seen.add(text)
        row = run(text)
        # Addresses differ from run to run; 64 bits hold what we compute with.
        if row[1] is not None and (" at 0x" in row[1] or "built-in" in row[1] or "<class" in row[1]
                                   or "<function" in row[1] or row[1] == "100000000000000000000" or "bound method" in row[1]):
            continue
        out.append(row)
    path = pathlib.Path(__file__).parent.parent / "data" / "template_cases.json"
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in out)
    path.write_text('{"variables": %s,\n"cases": [\n%s\n]}\n' % (json.dumps(VARS, ensure_ascii=False), lines))
    print(len(out), "cases,", sum(row[1] is None for row in out), "of them errors")


main()
