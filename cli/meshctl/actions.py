"""`meshctl actions`: what nodes can do, doing it, and what was done."""

from __future__ import annotations

import typer

from cli.meshctl import action_history, action_queue, action_run, offered_actions

app = typer.Typer()
app.command("list")(offered_actions.list_actions)
app.command("describe")(offered_actions.describe)
app.command("run")(action_run.run_action)
app.command("history")(action_history.history)
app.command("show")(action_history.show)
app.command("cancel")(action_queue.cancel)
app.command("retry")(action_queue.retry)
app.command("queue")(action_queue.queue)
app.command("dead")(action_queue.dead)
