"""A teacher on a vLLM server: the way past one machine."""

from .teacher import TeacherServer
from .wire import TeacherServerError, check_url


__all__ = ["TeacherServer", "TeacherServerError", "check_url"]
