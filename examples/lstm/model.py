"""A character LSTM that takes its batch by name and returns a mapping, as many training scripts have it."""

from torch import Tensor, nn


class CharLSTM(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, hidden)
        self.lstm = nn.LSTM(hidden, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 128)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        states, _ = self.lstm(self.embedding(ids))
        return {"logits": self.head(states)}
