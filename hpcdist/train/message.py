"""What a rank and the parameter server tell each other."""

import torch

# Before the gradients: images of the part, whether the rank was asked to stop, whether it goes.
QUESTION_NUMBERS = 3
# Before the weights: the next part (NO_TICKET for none), parts done, images of all ranks, learning rate.
ANSWER_NUMBERS = 4
NO_TICKET = -1
_DOUBLE_BYTES = 8


class Message:
    """Some numbers, then a row of floats, in one piece of memory that can be sent.

    Attributes:
        data: All of it, as bytes.
        numbers: The numbers, as doubles: whole ones are exact.
        floats: The row.
    """

    def __init__(self, numbers: int, floats: int) -> None:
        begin = numbers * _DOUBLE_BYTES
        self.data = torch.zeros(begin + 4 * floats, dtype=torch.uint8)
        self.numbers = self.data[:begin].view(torch.float64)
        self.floats = self.data[begin:].view(torch.float32)
