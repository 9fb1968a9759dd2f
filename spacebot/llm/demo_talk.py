"""What the demo model understands and says: phrases and shapes, as data.

Floor: llm
"""

import re

MARKER = "[demo model] "  # begins whatever people see

HELP = (
    "I am a set of rules, not a language model; put a provider's key into config.toml to get a real one. "
    'Try: "remember that …", "my favourite tea is …", "what is my favourite tea?", "run: ls", "wait 10 seconds", '
    '"make a file notes.txt with hello", "count files", "what is running?", "tell the worker: …", "cancel the worker".'
)
PHRASES = {
    "hello": "Hello{name}! " + HELP,
    "thanks": "You are welcome{name}.",
    "on it": "On it: {task}.",
    "cancelled": "Cancelled: {ids}.",
    "told": "I told the worker.",
    "idle": "Nothing is running.",
    "running": "Running now:\n{lines}",
    "failed": "That did not work ({state}): {text}",
}
NOW = re.compile(r"<now>(.*?)</now>", re.DOTALL)
RESULT = re.compile(r'<result process="(\w+)" id="([^"]*)" state="(\w+)"[^>]*>\n?(.*?)\n?</result>', re.DOTALL)
LINE = re.compile(r"(?:\[[^\]\n]*\] )?([^:\n\[\]]{1,60}): (.*)", re.DOTALL)
RUNNING = re.compile(r"^(Worker|Branch) ([^\s,]+)(?:,| since)", re.MULTILINE)
SAVE = re.compile(r"Save to memory \((\w+)\): (.+)", re.DOTALL)
RECALL = re.compile(r"Recall from memory: (.+)", re.DOTALL)
COMMAND = re.compile(r"shell command(?: \((\d+) s\))?: `(.+?)`", re.DOTALL)
FILE = re.compile(r"Write the file `(.+?)` with this content: `(.*?)`", re.DOTALL)

NUMBERS = {"a": 1, "one": 1, "two": 2, "five": 5, "ten": 10}
STATEMENTS = (  # shape, what is remembered, kind of memory
    (r"(?:please )?(?:remember|note|keep in mind)(?: that)?:? (.+)", "{0}", "fact"),
    (r"my name is (.+)", "{name}'s name is {0}", "identity"),
    (r"my (favou?rite .+?) (?:is|are) (.+)", "{name}'s {0} is {1}", "preference"),
    (r"my (.+?) (?:is|are) (.+)", "{name}'s {0} is {1}", "fact"),
    (r"i (?:really )?(like|love|prefer|hate|dislike) (.+)", "{name}: {0}s {1}", "preference"),
    (r"we (?:have )?decided (?:that |to )?(.+)", "Decision: {0}", "decision"),
    (r"(?:todo|remind me to):? (.+)", "To do for {name}: {0}", "todo"),
)
QUESTION = re.compile(
    r"(?:what|who|when|where|which)\b.*\b(?:my|i|me|we|our)\b.*|what do you (?:remember|know).*|do you remember.*"
    r"|recall\b.*",
    re.IGNORECASE | re.DOTALL,
)
HELLO = re.compile(r"(?:hello|hi|hey|good (?:morning|evening|day)|greetings)\b.*", re.IGNORECASE | re.DOTALL)
THANKS = re.compile(r"(?:thanks|thank you|great|cool|nice)\b.*", re.IGNORECASE | re.DOTALL)
CANCEL = re.compile(r"(?:cancel|stop|abort)\b.*", re.IGNORECASE | re.DOTALL)
ROUTE = re.compile(r"tell (?:the |your )?worker:?(?: to)? (.+)", re.IGNORECASE | re.DOTALL)
STATE = re.compile(r"(?:what is|what's|whats) running\b.*|status\??", re.IGNORECASE | re.DOTALL)
ADDRESSED = re.compile(r"\b(?:space)?bot\b|\?\s*$|\byou\b", re.IGNORECASE)
