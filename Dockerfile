# docker build -t slm . && docker run --rm -v "$PWD:/work" slm train book.txt --max_minutes 10
# A server: docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD:/work" slm serve best_model.pt --host 0.0.0.0 --api_key KEY
FROM python:3.13-slim
COPY . /src
RUN pip install --no-cache-dir "/src[bpe,serve]" && useradd --uid 1000 --create-home writer
USER 1000
WORKDIR /work
ENTRYPOINT ["slm"]
CMD ["--help"]
