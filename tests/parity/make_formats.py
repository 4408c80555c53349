#!/usr/bin/env python3
"""Makes tests/parity/fixtures/formats/: rows in every shape that is read, each file written by the library that its users write it with.

  VENV/bin/pip install datasets pandas pyarrow
  VENV/bin/python tests/parity/make_formats.py

`expected.json` says by file how it is laid out, which format it is, and what its rows say: `examples` (bodies of rows to imitate) and
`tasks` (questions with the columns that rewards read). It is put together here from the rows before they are written.
"""
import csv
import gzip
import json
import os
import shutil
import sqlite3

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "formats")
EXPECTED = {}


def path(name):
    return os.path.join(OUT, name)


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def chat(messages, learnt=None, tools=None):
    learnt = [m["role"] == "assistant" for m in messages] if learnt is None else learnt
    body = {"kind": "conversation", "messages": messages, "learnt": learnt}
    return {**body, "tools": tools} if tools else body


def plain(prompt, completion):
    return {"kind": "completion", "prompt": prompt, "completion": completion}


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def expect(name, container, shape, examples=(), tasks=()):
    EXPECTED[name] = {"container": container, "format": shape, "examples": list(examples), "tasks": list(tasks)}


def task(prompt, **columns):
    return {"prompt": prompt, "columns": columns}


def from_datasets(name, rows):
    """As `Dataset.to_parquet` and `to_json` write it."""
    made = datasets.Dataset.from_list(rows)
    made.to_parquet(path(name)) if name.endswith("parquet") else made.to_json(path(name))


def lines(name, rows, opened=open):
    with opened(path(name), "wt", encoding="utf-8") as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather of a place.",
                                             "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]
TEXTS = ["Grüße aus 東京, “quoted”, with, commas", "line one\nline two\n", "emoji 👩‍👩‍👧 and e\u0301", "\u202eאב right to left"]


def trl():
    from_datasets("trl_text.jsonl", [{"text": t} for t in TEXTS])
    expect("trl_text.jsonl", "JSONL", "text", [{"kind": "text", "text": t} for t in TEXTS])

    rows = [{"prompt": [user(t)], "answer": str(i)} for i, t in enumerate(TEXTS)]
    from_datasets("trl_prompt.parquet", rows)
    expect("trl_prompt.parquet", "Parquet", "prompt", tasks=[task(r["prompt"], answer=r["answer"]) for r in rows])

    rows = [{"prompt": f"{t} =", "completion": f" {i}"} for i, t in enumerate(TEXTS)]
    pd.DataFrame(rows).to_csv(path("trl_prompt_completion.csv"), index=False)
    expect("trl_prompt_completion.csv", "CSV", "prompt_completion", [plain(r["prompt"], r["completion"]) for r in rows],
           [task(r["prompt"], completion=r["completion"]) for r in rows])

    rows = [{"prompt": [system("Be brief."), user(t)], "completion": [assistant(t.upper())]} for t in TEXTS]
    from_datasets("trl_prompt_completion_chat.parquet", rows)
    expect("trl_prompt_completion_chat.parquet", "Parquet", "prompt_completion",
           [chat(r["prompt"] + r["completion"]) for r in rows], [task(r["prompt"]) for r in rows])

    turns = [user("Weather in Oslo?"), {"role": "assistant", "content": None, "tool_calls": [call("weather", city="Oslo")]},
             {"role": "tool", "name": "weather", "content": "4 °C"}, assistant("It is 4 °C.")]
    other = [user("Hi"), assistant("Hello!")]
    datasets.Dataset.from_list([{"messages": turns, "tools": json.dumps(TOOLS)}, {"messages": other, "tools": "[]"}]
                               ).to_parquet(path("trl_messages_tools.parquet"))
    read = [turns[0], {**turns[1], "content": ""}, turns[2], turns[3]]
    expect("trl_messages_tools.parquet", "Parquet", "messages", [chat(read, tools=TOOLS), chat(other)],
           [task(read[:3], completion="It is 4 °C."), task(other[:1], completion="Hello!")])

    rows = [{"prompt": f"Q{i}: ", "chosen": t, "rejected": "no"} for i, t in enumerate(TEXTS)]
    from_datasets("trl_preference.parquet", rows)
    expect("trl_preference.parquet", "Parquet", "preference", [plain(r["prompt"], r["chosen"]) for r in rows])

    rows = [{"chosen": [user(t), assistant("yes")], "rejected": [user(t), assistant("no")]} for t in TEXTS]
    from_datasets("trl_preference_implicit.parquet", rows)
    expect("trl_preference_implicit.parquet", "Parquet", "preference", [chat(r["chosen"]) for r in rows],
           [task(r["chosen"][:1], completion="yes") for r in rows])

    rows = [{"prompt": f"{i}+{i}=", "completion": str(2 * i + i % 2), "label": i % 2 == 0} for i in range(4)]
    pd.DataFrame(rows).to_csv(path("trl_unpaired.csv"), index=False)
    expect("trl_unpaired.csv", "CSV", "unpaired_preference", [plain(r["prompt"], r["completion"]) for r in rows if r["label"]])

    rows = [{"prompt": f"Which is larger, {i}.8 or {i}.11?", "completions": [f"{i}.80 > {i}.11.", f"So {i}.8."], "labels": [True, i < 2]}
            for i in range(3)]
    from_datasets("trl_stepwise.parquet", rows)
    steps = ["\n".join(r["completions"]) for r in rows]
    expect("trl_stepwise.parquet", "Parquet", "stepwise", [plain(r["prompt"], s) for r, s in zip(rows[:2], steps)],
           [task(r["prompt"], labels=r["labels"]) for r in rows])


def verl():
    def row(i, **more):
        return {"data_source": "openai/gsm8k", "prompt": [user(f"What is {i}+{i}?")], "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(2 * i)}, "extra_info": {"split": "train", "index": i}, **more}

    rows = [row(i) for i in range(3)]
    pd.DataFrame(rows).to_parquet(path("verl.parquet"))
    expect("verl.parquet", "Parquet", "verl",
           tasks=[task(r["prompt"], answer=str(2 * i), data_source="openai/gsm8k") for i, r in enumerate(rows)])

    rows = [row(i, target=[assistant(f"<think>\ndouble {i}\n</think>\n\\boxed{{{2 * i}}}")]) for i in range(3)]
    pd.DataFrame(rows).to_parquet(path("luffy.parquet"), compression="zstd")
    expect("luffy.parquet", "Parquet", "verl", [chat(r["prompt"] + r["target"]) for r in rows],
           [task(r["prompt"], answer=str(2 * i), completion=r["target"][0]["content"], target=r["target"]) for i, r in enumerate(rows)])

    rows = [{"id": f"train_{i}", "question": f"who {i}", "golden_answers": ["Ann", "A."], "data_source": "nq",
             "prompt": [user(f"Answer: who {i}?")], "ability": "fact-reasoning",
             "reward_model": {"style": "rule", "ground_truth": {"target": ["Ann", "A."]}}, "extra_info": {"index": i}} for i in range(3)]
    from_datasets("search_r1.parquet", rows)
    expect("search_r1.parquet", "Parquet", "verl", tasks=[task(r["prompt"], answer=["Ann", "A."]) for r in rows])

    rows = [{"data_source": "x", "prompt": [user(f"{i}?")], "env_class": "gsm8k",
             "reward_spec": {"method": "rule", "ground_truth": str(i)}, "extra_info": {"index": i}} for i in range(3)]
    from_datasets("skyrl.parquet", rows)
    expect("skyrl.parquet", "Parquet", "verl", tasks=[task(r["prompt"], answer=str(i)) for i, r in enumerate(rows)])

    rows = [{"prompt": [user(f"{i}?")], "label": str(i), "metadata": {"level": i}} for i in range(3)]
    lines("slime.jsonl", rows)
    expect("slime.jsonl", "JSONL", "prompt", tasks=[task(r["prompt"], answer=r["label"], label=r["label"]) for r in rows])


def dialogues():
    bare = [t["function"] for t in TOOLS]
    rows = [
        {"conversations": [{"from": "human", "value": "Weather in Oslo?"},
                           {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Oslo"}})},
                           {"from": "observation", "value": "{\"celsius\": 4}"}, {"from": "gpt", "value": "4 °C."}],
         "system": "Help.", "tools": json.dumps(bare)},
        {"conversations": [{"from": "system", "value": "Own."}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},
                           {"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}], "system": "", "tools": ""},
    ]
    with open(path("sharegpt.json"), "w", encoding="utf-8") as f:
        json.dump(rows, f, ensure_ascii=False, indent=2)
    first = [system("Help."), user("Weather in Oslo?"), assistant("", tool_calls=[call("weather", city="Oslo")]),
             {"role": "tool", "content": "{\"celsius\": 4}"}, assistant("4 °C.")]
    second = [system("Own."), user("a"), assistant("b"), user("c"), assistant("d")]
    expect("sharegpt.json", "JSON", "sharegpt", [chat(first, tools=TOOLS), chat(second)],
           [task(first[:4], completion="4 °C."), task(second[:4], completion="d")])

    rows = [{"instruction": "Add.", "input": "1, 2", "output": "3", "system": "Count.", "history": [["Hi", "Hello"]]},
            {"instruction": "Name a colour.", "input": "", "output": "Red.", "system": "", "history": []}]
    with open(path("alpaca.json"), "w", encoding="utf-8") as f:
        json.dump(rows, f)
    first = [system("Count."), user("Hi"), assistant("Hello"), user("Add.\n1, 2"), assistant("3")]
    second = [user("Name a colour."), assistant("Red.")]
    expect("alpaca.json", "JSON", "alpaca", [chat(first), chat(second)], [task(first[:4], completion="3"), task(second[:1])])

    with open(path("alpaca.csv"), "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, ["instruction", "input", "output"], dialect="excel")
        writer.writeheader()
        writer.writerows({"instruction": t, "input": "", "output": f"\"{t}\""} for t in TEXTS)
    expect("alpaca.csv", "CSV", "alpaca", [chat([user(t), assistant(f"\"{t}\"")]) for t in TEXTS])

    turns = [system("s"), user("a"), assistant("b", weight=0), user("c"), assistant("d", weight=1)]
    called = [user("x"), {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function", "function": {
        "name": "weather", "arguments": "{\"city\": \"Oslo\"}"}}]}, {"role": "tool", "tool_call_id": "call_1", "content": "4"},
        assistant("4.")]
    lines("openai.jsonl", [{"messages": turns}, {"messages": called, "tools": TOOLS, "parallel_tool_calls": False}])
    bare = [{k: v for k, v in m.items() if k != "weight"} for m in turns]
    read = [called[0], assistant("", tool_calls=[{"id": "call_1", **call("weather", city="Oslo")}]), *called[2:]]
    expect("openai.jsonl", "JSONL", "messages", [chat(bare, [False, False, False, False, True]), chat(read, tools=TOOLS)])


def thought(reasoning, content):
    return f"<think>\n{reasoning}\n</think>\n\n{content}"


def traces():
    rows = [{"problem": f"{i}?", "solution": "s", "answer": str(i), "problem_type": "Algebra", "question_type": "math-word-problem",
             "source": "x", "uuid": str(i), "is_reasoning_complete": [True, True], "generations": [f"wrong {i}", f"right {i}"],
             "correctness_math_verify": [False, i != 2], "correctness_llama": None, "finish_reasons": None, "correctness_count": 1,
             "messages": [user(f"{i}?"), assistant(f"right {i}")]} for i in range(3)]
    from_datasets("openr1.parquet", rows)
    expect("openr1.parquet", "Parquet", "openr1", [chat([user(f"{i}?"), assistant(f"right {i}")]) for i in range(2)],
           [task([user(f"{i}?")], answer=str(i)) for i in range(3)])

    rows = [{"question": t, "reasoning_content": f"about {t}".strip(), "content": "so", "score": 9} for t in TEXTS]
    lines("deepseek.jsonl.gz", rows, gzip.open)
    expect("deepseek.jsonl.gz", "JSONL", "reasoning",
           [chat([user(r["question"]), assistant(thought(r["reasoning_content"], "so"))]) for r in rows],
           [task([user(r["question"])], completion=thought(r["reasoning_content"], "so")) for r in rows])

    rows = [{"messages": [user(t)], "reasoning": "r", "answer": "a", "model": "R1"} for t in TEXTS]
    from_datasets("dolphin_r1.jsonl", rows)
    expect("dolphin_r1.jsonl", "JSONL", "reasoning", [chat([user(t), assistant(thought("r", "a"))]) for t in TEXTS],
           [task([user(t)], answer="a") for t in TEXTS])

    rows = [{"prompt": f"{i}?", "response": f"= {i}", "reward": i / 2} for i in range(3)]
    with pa.OSFile(path("rollouts.jsonl.zst"), "wb") as raw, pa.CompressedOutputStream(raw, "zstd") as f:
        f.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    expect("rollouts.jsonl.zst", "JSONL", "prompt_completion", [plain(r["prompt"], r["response"]) for r in rows],
           [task(r["prompt"], completion=r["response"], reward=r["reward"]) for r in rows])


def benchmarks():
    rows = [{"question": "Two and two?", "answer": "2+2 = <<2+2=4>>4\n#### 4"},
            {"question": "Many?", "answer": "It is 1,000 + 234.\n#### 1,234"}]
    pq.write_table(pa.Table.from_pylist(rows), path("gsm8k.parquet"), compression="gzip")
    expect("gsm8k.parquet", "Parquet", "gsm8k", [chat([user(r["question"]), assistant(r["answer"])]) for r in rows],
           [task([user(r["question"])], answer=a, solution=r["answer"]) for r, a in zip(rows, ["4", "1234"])])

    rows = [{"problem": "Half?", "solution": "It is $\\boxed{\\frac{1}{2}}$.", "answer": "\\frac{1}{2}", "subject": "Algebra",
             "level": 1, "unique_id": "test/algebra/1.json"}]
    lines("math500.jsonl", rows)
    expect("math500.jsonl", "JSONL", "math500", tasks=[task([user("Half?")], answer="\\frac{1}{2}", level=1)])

    rows = [{"ID": "2024-I-1", "Problem": "How many?", "Solution": "So 33.", "Answer": 33}]
    pd.DataFrame(rows).to_csv(path("aime.csv"), index=False)
    expect("aime.csv", "CSV", "aime", tasks=[task([user("How many?")], answer="33", ID="2024-I-1")])

    code, solution = "def inc(x):\n    \"\"\"Adds one.\"\"\"\n", "    return x + 1\n"
    test = "def check(candidate):\n    assert candidate(1) == 2\n"
    lines("humaneval.jsonl.gz", [{"task_id": "HumanEval/0", "prompt": code, "entry_point": "inc",
                                  "canonical_solution": solution, "test": test}], gzip.open)
    expect("humaneval.jsonl.gz", "JSONL", "humaneval", [plain(code, solution)],
           [task(code, tests=test + "\n\ncheck(inc)\n".replace("\n\n", "\n", 1), entry_point="inc", completion=solution)])


def logs():
    asked = {"model": "qwen3", "messages": [user("Mail ann@example.com?")], "stream": False}
    rows = [{"path": "/api/chat", "request": asked, "response": {"model": "qwen3", "message": assistant("Sent.", thinking="hm"), "done": True}},
            {"path": "/api/generate", "request": {"model": "qwen3", "prompt": "1+1="}, "response": {"response": "2", "done": True}},
            {"path": "/api/chat", "request": {**asked, "stream": True}, "response": [
                {"message": assistant("Se"), "done": False}, {"message": assistant("nt."), "done": True}]},
            {"path": "/api/chat", "request": asked, "response": {"error": "no such model"}}]
    lines("ollama_log.jsonl", rows)
    clean = user("Mail [email]?")
    expect("ollama_log.jsonl", "JSONL", "request_log",
           [chat([clean, assistant(thought("hm", "Sent."))]), chat([user("1+1="), assistant("2")]), chat([clean, assistant("Sent.")])])

    def openai(**message):
        return {"id": "c", "object": "chat.completion", "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}

    events = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}, {"choices": [{"delta": {"content": "Hel"}}]},
              {"choices": [{"delta": {"content": "lo"}}]}, {"choices": [], "usage": {"total_tokens": 3}}]
    rows = [{"request": {"body": {"messages": [user("x")], "tools": TOOLS}}, "response": {"status_code": 200, "body": openai(
                role="assistant", content=None, tool_calls=[{"id": "1", "type": "function",
                "function": {"name": "weather", "arguments": "{\"city\": \"Oslo\"}"}}])}},
            {"request": {"messages": [user("y")], "stream": True}, "response": "".join(
                f"data: {json.dumps(e)}\n\n" for e in events) + "data: [DONE]\n\n"}]
    lines("openai_log.jsonl", rows)
    expect("openai_log.jsonl", "JSONL", "request_log",
           [chat([user("x"), assistant("", tool_calls=[{"id": "1", **call("weather", city="Oslo")}])], tools=TOOLS),
            chat([user("y"), assistant("Hello")])])


def database(name, *statements):
    if os.path.exists(path(name)):
        os.remove(path(name))
    db = sqlite3.connect(path(name))
    for sql, *rows in statements:
        db.executemany(sql, rows) if rows else db.execute(sql)
    db.commit()
    db.execute("VACUUM")
    db.close()


def memories():
    """The tables of Ollama's application (app/store, version 2), of Open WebUI (chat), of `llm` (logs.db), and plain ones."""
    database(
        "ollama_app.db",
        ("CREATE TABLE settings (id INTEGER PRIMARY KEY CHECK (id = 1), models TEXT NOT NULL DEFAULT '')",),
        ("CREATE TABLE chats (id TEXT PRIMARY KEY, title TEXT NOT NULL DEFAULT '', created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP)",),
        ("CREATE TABLE messages (id INTEGER PRIMARY KEY AUTOINCREMENT, chat_id TEXT NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL "
         "DEFAULT '', thinking TEXT NOT NULL DEFAULT '', stream BOOLEAN NOT NULL DEFAULT 0, model_name TEXT, created_at TIMESTAMP NOT NULL, "
         "FOREIGN KEY (chat_id) REFERENCES chats(id) ON DELETE CASCADE)",),
        ("CREATE TABLE tool_calls (id INTEGER PRIMARY KEY AUTOINCREMENT, message_id INTEGER NOT NULL, type TEXT NOT NULL, "
         "function_name TEXT NOT NULL, function_arguments TEXT NOT NULL, function_result TEXT)",),
        ("INSERT INTO chats VALUES (?, ?, ?)", ("c1", "Sums", "2026-01-02 10:00:00"), ("c2", "Weather", "2026-02-03 10:00:00"),
         ("c3", "Alone", "2026-03-04 10:00:00")),
        ("INSERT INTO messages VALUES (?, ?, ?, ?, ?, 0, ?, ?)",
         (1, "c1", "user", "1+1?", "", None, "2026-01-02 10:00:01"), (2, "c2", "user", "Oslo? Call +49 30 1234567.", "", None, "2026-02-03 10:00:01"),
         (3, "c1", "assistant", "2", "one and one", "qwen3:4b", "2026-01-02 10:00:02"),
         (4, "c2", "assistant", "", "", "llama3.2", "2026-02-03 10:00:02"), (5, "c2", "assistant", "4 °C.", "", "llama3.2", "2026-02-03 10:00:03"),
         (6, "c3", "user", "anybody?", "", None, "2026-03-04 10:00:01")),
        ("INSERT INTO tool_calls VALUES (?, ?, ?, ?, ?, ?)", (1, 4, "function", "weather", "{\"city\": \"Oslo\"}", "4")),
    )
    sums = [user("1+1?"), assistant(thought("one and one", "2"))]
    weather = [user("Oslo? Call [phone]."), assistant("", tool_calls=[call("weather", city="Oslo")]),
               {"role": "tool", "name": "weather", "content": "4"}, assistant("4 °C.")]
    expect("ollama_app.db", "SQLite", "messages", [chat(sums), chat(weather)],
           [task(sums[:1], session_id="c1", title="Sums", model="qwen3:4b", created_at="2026-01-02 10:00:00"), task(weather[:3], title="Weather")])

    def node(key, parent, role, content, **more):
        return {"id": key, "parentId": parent, "childrenIds": [], "role": role, "content": content, "timestamp": 1769860800, **more}

    def webui(current, *nodes):
        return json.dumps({"title": "t", "models": ["qwen3:4b"], "history": {"currentId": current, "messages": {n["id"]: n for n in nodes}},
                           "messages": [], "tags": []})

    database(
        "openwebui.db",
        ("CREATE TABLE user (id VARCHAR PRIMARY KEY, name TEXT, email TEXT, role TEXT)",),
        ("CREATE TABLE chat (id VARCHAR(255) PRIMARY KEY, user_id VARCHAR(255), title TEXT, chat JSON, created_at BIGINT, updated_at BIGINT, "
         "share_id TEXT, archived BOOLEAN)",),
        ("INSERT INTO user VALUES (?, ?, ?, ?)", ("u", "Ann", "ann@example.com", "admin")),
        ("INSERT INTO chat VALUES (?, 'u', ?, ?, ?, ?, NULL, 0)",
         ("w1", "Branches", webui("d", node("a", None, "user", "My key is sk-abcdefghijklmnopqrstuvwx"), node("b", "a", "assistant", "first try", model="qwen3:4b"),
                                  node("c", "a", "assistant", "second try", model="gemma3"), node("d", "c", "user", "thanks")), 1769860800, 1769860900),
         ("w2", "Empty", "{}", 1769860800, 1769860900)),
    )
    branch = [user("My key is [key]"), assistant("second try"), user("thanks")]
    expect("openwebui.db", "SQLite", "messages", [chat(branch)], [task(branch, session_id="w1", title="Branches", created_at="2026-01-31 12:00:00")])

    database(
        "llm.db",
        ("CREATE TABLE conversations (id TEXT PRIMARY KEY, name TEXT, model TEXT)",),
        ("CREATE TABLE responses (id TEXT PRIMARY KEY, model TEXT, prompt TEXT, system TEXT, prompt_json TEXT, options_json TEXT, response TEXT, "
         "response_json TEXT, conversation_id TEXT, duration_ms INTEGER, datetime_utc TEXT)",),
        ("INSERT INTO conversations VALUES ('k', 'Talk', 'llama3')",),
        ("INSERT INTO responses VALUES (?, 'llama3', ?, ?, NULL, NULL, ?, NULL, 'k', 1, ?)",
         ("02", "And then?", None, "Then 3.", "2026-01-02T10:00:02.5"), ("01", "Count.", "Be brief.", "1, 2.", "2026-01-02T10:00:01.5")),
    )
    talk = [system("Be brief."), user("Count."), assistant("1, 2."), user("And then?"), assistant("Then 3.")]
    expect("llm.db", "SQLite", "messages", [chat(talk)], [task(talk[:4], session_id="k", title="Talk")])


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    for make in (trl, verl, dialogues, traces, benchmarks, logs, memories):
        make()
    with open(path("expected.json"), "w", encoding="utf-8") as f:
        versions = {m.__name__: m.__version__ for m in (datasets, pd, pa)}
        json.dump({"versions": versions, "files": EXPECTED}, f, ensure_ascii=False, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
