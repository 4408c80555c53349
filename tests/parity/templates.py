"""Chat templates of our own that use what templates in the wild use, and conversations to render, for make_fixtures.py."""

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{% endif %}\
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# trim_blocks and lstrip_blocks, strip(), bos and eos, a namespace, raise_exception, merging of the system text
BRACKETS = """{%- set ns = namespace(system='', turns=0) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = message.content | trim %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{% for message in messages if message.role != 'system' %}
    {% if (message['role'] == 'user') != (ns.turns % 2 == 0) %}
        {{ raise_exception('roles must alternate user/assistant') }}
    {% endif %}
    {% if message.role == 'user' %}
        {% if ns.turns == 0 and ns.system %}
[INST] <<SYS>> {{ ns.system }} <</SYS>> {{ message.content.strip() }} [/INST]
        {%- else %}
[INST] {{ message.content.strip() }} [/INST]
        {%- endif %}
    {% else %}
 {{ message.content | trim + ' ' + eos_token }}
    {%- endif %}
    {% set ns.turns = ns.turns + 1 %}
{% endfor %}
"""

# tools as JSON, slices, items(), macros, loop controls, tests, the generation tag, python's spelling of values
TOOLS = """{% macro head(role) %}<|im_start|>{{ role }}
{% endmacro %}
{%- if tools %}
    {{- head('system') }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
    {{- '# Tools\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}{{ '\\n' }}
        {%- for key, value in tool.function.parameters.properties.items() %}
            {{- '- ' ~ key ~ ': ' ~ value.type | upper }}{{ '\\n' }}
        {%- endfor %}
    {%- endfor %}
    {{- tools[0] | tojson(indent=2) }}
    {{- '<|im_end|>\\n' }}
    {%- set rest = messages[1:] if messages[0].role == 'system' else messages %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- for message in rest %}
    {%- if message.role == 'ignored' %}{% continue %}{% endif %}
    {%- if loop.index0 > 6 %}{% break %}{% endif %}
    {%- if message.role == 'assistant' %}
        {{- head('assistant') }}
        {%- generation %}
        {%- if message.tool_calls is defined and message.tool_calls is not none %}
            {%- for call in message.tool_calls %}
                {{- '<call>' + call.function.name + ' ' }}{{ call.function.arguments | tojson }}{{ '</call>' }}
            {%- endfor %}
        {%- else %}
            {{- message.content.split('</think>')[-1].lstrip('\\n') }}
        {%- endif %}
        {%- endgeneration %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- head('tool') + message.get('name', 'unnamed') + ': ' + message.content.replace('\\r', '') + '<|im_end|>\\n' }}
    {%- else %}
        {{- head(message.role) + message.content.rstrip() + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}{{ 'thinking: ' }}{{ enable_thinking }}{{ '\\n' }}{% endif %}
{%- if date_string is not defined %}{% set date_string = 'today' %}{% endif %}
{{- 'Date: ' + date_string + '\\n' }}
{%- if add_generation_prompt %}{{ head('assistant') }}{% endif %}"""

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather \"now\" in <city> & around, é",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
            "required": ["city"],
            "limits": [1.0, 0.5, -3, 1e-05, 1e16, 123456789.125, True, None],
        },
    },
}

def user(text):
    return {"role": "user", "content": text}

def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}

CONVERSATIONS = [
    {"messages": [user("Hi")]},
    {"messages": [user("  What is 12+34?  \n")]},
    {"messages": [{"role": "system", "content": " You add. "}, user("1+1"), assistant("2"), user("2+2")]},
    {"messages": [user("a"), assistant(" b \n"), user(""), assistant("d")], "add_generation_prompt": False},
    {"messages": [user("<b>5 < 6</b> & {{ x }} {% if %} é 🙂 \u200b> |")]},
    {"messages": [user("a"), user("b")]},
    {"messages": [user("x"), assistant("hm\n</think>\n\nyes")], "add_generation_prompt": False},
    {
        "messages": [
            {"role": "system", "content": "Call tools."},
            user("Weather in Zürich?"),
            assistant("", tool_calls=[{"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}]),
            {"role": "tool", "name": "weather", "content": "{\"t\": 21.5}\r\n"},
            assistant("21.5 degrees."),
            user("Thanks"),
        ],
        "tools": [TOOL],
        "only": "tools",
    },
    {"messages": [user("q")], "enable_thinking": False, "date_string": "26 Jul 2024"},
]
