import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

/**
 * The demo's web application: an HTTP port, a line port, and faults on request.
 *
 * <p>One file that runs from source on JDK 11 and later, with nothing but the JDK:
 * {@code java App.java --port 8001 --line-port 8101 --name primary}. README.md lists the URLs.
 */
public final class App {
    /** Byte i of /bytes is i modulo this. A prime: a lost or repeated block of any usual size changes what follows. */
    private static final int PERIOD = 251;

    /** Small enough that no collector gives it a region of its own: then 4 of them really are 1 MB. */
    private static final int QUARTER_MB = 1 << 18;

    private static final String HELP = String.join("\n",
        "GET  /                       this page",
        "GET  /health                 200 ok, or 503 after /fault/unhealthy",
        "GET  /who                    name and pid as JSON",
        "GET  /slow?ms=N              answers after N ms",
        "GET  /bytes?n=N[&chunk=N]    N bytes, byte i is i modulo 251",
        "GET  /stream?n=N&ms=N        n chunks, one each ms milliseconds",
        "POST /upload                 length and SHA-256 of the body as JSON",
        "faults, by POST or GET:",
        "/fault/slow?ms=N             every later request and line takes N ms longer",
        "/fault/hang[?s=N]            requests and lines block, /health too, for N seconds or for ever",
        "/fault/deadlock              two threads block each other for ever, one holding what /health needs",
        "/fault/leak[?mb=N]           keeps N MB more; without mb: until the memory is used up",
        "/fault/exit[?code=N]         ends the process at once",
        "/fault/unhealthy             /health answers 503",
        "/fault/healthy               /health answers 200 again",
        "/fault/ignore-term           lives on after SIGTERM and goes on serving",
        "/fault/logspam[?lines=N]     writes N lines to its log",
        "/fault/child[?s=N]           starts a child that holds the log open and outlives it, for N seconds",
        "/fault/none                  takes all faults back, except a deadlock",
        "");

    /** What the client sent cannot be answered; its text says why, for the client. */
    private static final class BadRequest extends Exception {
        private static final long serialVersionUID = 1;
        final int status;

        BadRequest(int status, String text) {
            super(text);
            this.status = status;
        }
    }

    private final String name;
    private final long pid = ProcessHandle.current().pid();
    private final long startedAt = System.nanoTime();
    private final AtomicLong served = new AtomicLong();
    private final byte[] pattern = new byte[PERIOD * 523];
    private final Object healthLock = new Object();

    private volatile int slowMs;
    private volatile boolean unhealthy;
    private volatile boolean deadlocked;
    private volatile Thread hangingHook;

    /** Guards the two fields of the hang; every request passes it. */
    private final Object gate = new Object();
    private boolean hangs;
    private long hangEndsAt;

    /** Guards the leak: a chain of {previous, block}, which needs no room to grow but its own. */
    private final Object leakLock = new Object();
    private Object[] leaked;
    private long leakedBytes;
    private boolean fills;

    private App(String name) {
        this.name = name;
        for (int i = 0; i < pattern.length; i++) {
            pattern[i] = (byte) (i % PERIOD);
        }
    }

    // ---------------------------------------------------------------- requests

    /** Answers one request whole, whatever it is; throws only when the client has gone. */
    private void respond(HttpExchange exchange) throws IOException {
        InputStream body = exchange.getRequestBody();
        try {
            served.incrementAndGet();
            route(exchange, exchange.getRequestURI().getPath());
            body.transferTo(OutputStream.nullOutputStream()); // what the answer did not need
        } catch (BadRequest error) {
            answer(exchange, error.status, error.getMessage() + "\n");
            body.transferTo(OutputStream.nullOutputStream());
        } catch (InterruptedException error) {
            throw new IOException(error);
        } finally {
            exchange.close();
        }
    }

    private void route(HttpExchange exchange, String path) throws IOException, BadRequest, InterruptedException {
        boolean isFault = path.startsWith("/fault/");
        if (!path.equals("/fault/none")) {
            waitTurn(isFault);
        }
        if (isFault) {
            answer(exchange, 200, fault(path, new Query(exchange)) + "\n");
            return;
        }
        switch (path) {
            case "/":
                answer(exchange, 200, page());
                break;
            case "/health":
                health(exchange);
                break;
            case "/who":
                answerJson(exchange, "{\"name\":\"" + name + "\",\"pid\":" + pid + "}");
                break;
            case "/slow":
                long delay = new Query(exchange).number("ms");
                Thread.sleep(delay);
                answer(exchange, 200, name + " " + pid + " after " + delay + " ms\n");
                break;
            case "/bytes":
                bytes(exchange);
                break;
            case "/stream":
                stream(exchange);
                break;
            case "/upload":
                upload(exchange);
                break;
            default:
                throw new BadRequest(404, "there is no " + path);
        }
    }

    /** Waits while the application hangs, and then as long as it is slow. */
    private void waitTurn(boolean isFault) throws InterruptedException {
        synchronized (gate) {
            while (hangs) {
                long left = hangEndsAt == 0 ? Long.MAX_VALUE : hangEndsAt - System.nanoTime();
                if (left <= 0) {
                    hangs = false;
                    gate.notifyAll();
                } else {
                    gate.wait(left / 1_000_000 + 1);
                }
            }
        }
        if (slowMs > 0 && !isFault) {
            Thread.sleep(slowMs);
        }
    }

    private String page() {
        long up = TimeUnit.NANOSECONDS.toSeconds(System.nanoTime() - startedAt);
        List<String> found = present();
        return name + ", pid " + pid + ", up " + up + " s, " + served + " requests served\n"
            + "faults now: " + (found.isEmpty() ? "none" : String.join(", ", found)) + "\n\n" + HELP;
    }

    /** The faults that are there now, in words. */
    private List<String> present() {
        List<String> found = new ArrayList<>();
        if (slowMs > 0) {
            found.add("slow by " + slowMs + " ms");
        }
        if (deadlocked) {
            found.add("deadlock");
        }
        synchronized (leakLock) {
            if (leakedBytes > 0) {
                found.add("leak of " + (leakedBytes >> 20) + " MB");
            }
        }
        if (unhealthy) {
            found.add("unhealthy");
        }
        if (hangingHook != null) {
            found.add("ignores SIGTERM");
        }
        return found;
    }

    private void health(HttpExchange exchange) throws IOException {
        boolean ok;
        synchronized (healthLock) {
            ok = !unhealthy;
        }
        answer(exchange, ok ? 200 : 503, ok ? "ok\n" : "unhealthy\n");
    }

    private void bytes(HttpExchange exchange) throws IOException, BadRequest {
        Query query = new Query(exchange);
        long length = query.number("n");
        int largest = pattern.length - PERIOD;
        int chunk = (int) Math.min(Math.max(query.number("chunk", largest), 1), largest);
        OutputStream out = begin(exchange, 200, "application/octet-stream", length);
        if (out == null) {
            return;
        }
        for (long sent = 0; sent < length; ) {
            int size = (int) Math.min(chunk, length - sent);
            out.write(pattern, (int) (sent % PERIOD), size);
            sent += size;
        }
    }

    private void stream(HttpExchange exchange) throws IOException, BadRequest, InterruptedException {
        Query query = new Query(exchange);
        long count = query.number("n", 10);
        long pause = query.number("ms", 100);
        OutputStream out = begin(exchange, 200, "text/plain; charset=utf-8", -1);
        for (long number = 0; out != null && number < count; number++) {
            Thread.sleep(pause);
            out.write((name + " " + pid + " chunk " + number + "\n").getBytes(StandardCharsets.UTF_8));
            out.flush();
        }
    }

    private void upload(HttpExchange exchange) throws IOException, BadRequest {
        if (!exchange.getRequestMethod().equals("POST") && !exchange.getRequestMethod().equals("PUT")) {
            throw new BadRequest(405, "/upload takes POST or PUT");
        }
        MessageDigest digest;
        try {
            digest = MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException(error); // every JDK has it
        }
        InputStream body = exchange.getRequestBody();
        byte[] block = new byte[1 << 16];
        long length = 0;
        for (int size; (size = body.read(block)) >= 0; length += size) {
            digest.update(block, 0, size);
        }
        StringBuilder hex = new StringBuilder();
        for (byte b : digest.digest()) {
            hex.append(String.format("%02x", b));
        }
        answerJson(exchange, "{\"length\":" + length + ",\"sha256\":\"" + hex + "\"}");
    }

    // ---------------------------------------------------------------- faults

    /** Does what the URL says and returns what is so now, in words. */
    private String fault(String path, Query query) throws IOException, BadRequest, InterruptedException {
        switch (path) {
            case "/fault/slow":
                slowMs = (int) query.number("ms");
                return "every request and line takes " + slowMs + " ms longer";
            case "/fault/hang":
                return hang(query.number("s", 0));
            case "/fault/deadlock":
                return deadlock();
            case "/fault/leak":
                return query.has("mb") ? leak(query.number("mb")) : fill();
            case "/fault/exit":
                Runtime.getRuntime().halt((int) query.number("code", 1));
                return "";
            case "/fault/unhealthy":
                unhealthy = true;
                return "/health answers 503";
            case "/fault/healthy":
                unhealthy = false;
                return "/health answers 200";
            case "/fault/ignore-term":
                return ignoreTerm();
            case "/fault/logspam":
                return logspam(query.number("lines", 1000));
            case "/fault/child":
                return startChild(query.number("s", 600));
            case "/fault/none":
                return reset();
            default:
                throw new BadRequest(404, "there is no " + path);
        }
    }

    private String hang(long seconds) {
        synchronized (gate) {
            hangs = true;
            hangEndsAt = seconds == 0 ? 0 : System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds);
        }
        return seconds == 0 ? "hangs for ever" : "hangs for " + seconds + " s";
    }

    /** Two threads, each holding one lock and wanting the other's; /health wants the first. */
    private synchronized String deadlock() throws InterruptedException {
        if (deadlocked) {
            return "deadlock: is there already";
        }
        deadlocked = true;
        Object other = new Object();
        CountDownLatch both = new CountDownLatch(2);
        startDaemon("deadlock-1", () -> embrace(healthLock, other, both));
        startDaemon("deadlock-2", () -> embrace(other, healthLock, both));
        both.await();
        return "deadlock: two threads block each other, /health waits for one of them";
    }

    private static void embrace(Object first, Object second, CountDownLatch both) {
        synchronized (first) {
            both.countDown();
            try {
                both.await();
            } catch (InterruptedException error) {
                return;
            }
            synchronized (second) {
                throw new IllegalStateException("the deadlock did not hold");
            }
        }
    }

    private String leak(long megabytes) {
        for (long i = 0; i < megabytes * 4; i++) {
            keep(QUARTER_MB);
        }
        synchronized (leakLock) {
            return "keeps " + (leakedBytes >> 20) + " MB";
        }
    }

    private void keep(int size) {
        synchronized (leakLock) {
            leaked = new Object[] {leaked, new byte[size]};
            leakedBytes += size;
        }
    }

    /** Takes all memory to the last small block and keeps taking what the collector finds, as a real leak does. */
    private String fill() {
        synchronized (leakLock) {
            if (fills) {
                return "fills the memory already";
            }
            fills = true;
        }
        startDaemon("leak", () -> {
            byte[] message = "out of memory\n".getBytes(StandardCharsets.UTF_8);
            FileOutputStream log = new FileOutputStream(FileDescriptor.out);
            boolean isFull = false;
            boolean isSaid = false;
            int size = QUARTER_MB;
            while (isFilling()) {
                try {
                    if (isFull && !isSaid) {
                        isSaid = write(log, message); // may itself lack memory: then in the next round
                    }
                    keep(size);
                } catch (OutOfMemoryError error) { // what this fault is for
                    isFull = true;
                    size = size > 64 ? size / 4 : 64;
                }
            }
        });
        return "fills the memory until it is used up";
    }

    private boolean isFilling() {
        synchronized (leakLock) {
            return fills;
        }
    }

    private static boolean write(OutputStream out, byte[] message) {
        try {
            out.write(message);
        } catch (IOException error) {
            // a log that is gone changes nothing about the fault
        }
        return true;
    }

    private synchronized String ignoreTerm() {
        if (hangingHook == null) {
            Thread hook = new Thread(() -> {
                try {
                    new CountDownLatch(1).await();
                } catch (InterruptedException error) {
                    Thread.currentThread().interrupt();
                }
            }, "hanging-hook");
            Runtime.getRuntime().addShutdownHook(hook);
            hangingHook = hook;
        }
        return "SIGTERM, SIGINT and SIGHUP no longer end it";
    }

    private String logspam(long lines) {
        String filler = "x".repeat(60);
        for (long number = 1; number <= lines; number++) {
            System.out.println("spam " + number + " of " + lines + ": " + filler);
        }
        return "wrote " + lines + " lines";
    }

    private String startChild(long seconds) throws IOException {
        Process child = new ProcessBuilder("sleep", Long.toString(seconds)).inheritIO().start();
        return "child " + child.pid() + " holds the log open";
    }

    private synchronized String reset() {
        slowMs = 0;
        unhealthy = false;
        synchronized (gate) {
            hangs = false;
            gate.notifyAll();
        }
        synchronized (leakLock) {
            fills = false;
            leaked = null;
            leakedBytes = 0;
        }
        if (hangingHook != null) {
            try {
                Runtime.getRuntime().removeShutdownHook(hangingHook);
                hangingHook = null;
            } catch (IllegalStateException error) {
                // it hangs already, after a SIGTERM: only SIGKILL is left
            }
        }
        List<String> found = present();
        return "what is left: " + (found.isEmpty() ? "no fault" : String.join(", ", found));
    }

    // ---------------------------------------------------------------- HTTP

    /** The numbers of a query string. */
    private static final class Query {
        private final String path;
        private final Map<String, String> texts = new HashMap<>();

        Query(HttpExchange exchange) {
            path = exchange.getRequestURI().getPath();
            String query = exchange.getRequestURI().getQuery();
            for (String part : (query == null ? "" : query).split("&")) {
                String[] pair = part.split("=", 2);
                texts.put(pair[0], pair.length > 1 ? pair[1] : "");
            }
        }

        boolean has(String key) {
            return texts.containsKey(key);
        }

        long number(String key, long otherwise) throws BadRequest {
            return has(key) ? number(key) : otherwise;
        }

        long number(String key) throws BadRequest {
            String text = texts.getOrDefault(key, "");
            if (!text.matches("[0-9]{1,18}")) {
                throw new BadRequest(400, path + " needs " + key + "=N, a whole number of 0 or more");
            }
            return Long.parseLong(text);
        }
    }

    /**
     * Sends the head of an answer and returns where its body goes, or null if there is none to send.
     *
     * @param length of the body, or -1 to send it in chunks
     */
    private static OutputStream begin(HttpExchange exchange, int status, String kind, long length) throws IOException {
        exchange.getResponseHeaders().set("Content-Type", kind);
        if (exchange.getRequestMethod().equals("HEAD") || length == 0) {
            if (length > 0) {
                exchange.getResponseHeaders().set("Content-Length", Long.toString(length));
            }
            exchange.sendResponseHeaders(status, -1);
            return null;
        }
        exchange.sendResponseHeaders(status, length < 0 ? 0 : length); // 0 means chunks here
        return exchange.getResponseBody();
    }

    private static void answer(HttpExchange exchange, int status, String text) throws IOException {
        send(exchange, status, "text/plain; charset=utf-8", text);
    }

    private static void answerJson(HttpExchange exchange, String json) throws IOException {
        send(exchange, 200, "application/json", json + "\n");
    }

    private static void send(HttpExchange exchange, int status, String kind, String text) throws IOException {
        byte[] body = text.getBytes(StandardCharsets.UTF_8);
        OutputStream out = begin(exchange, status, kind, body.length);
        if (out != null) {
            out.write(body);
        }
    }

    // ---------------------------------------------------------------- lines

    private void acceptLines(ServerSocket listener) {
        while (true) {
            try {
                Socket socket = listener.accept();
                startDaemon("line", () -> serveLines(socket));
            } catch (IOException error) {
                System.err.println("cannot accept a connection: " + error.getMessage());
            }
        }
    }

    /** Answers each line with `NAME PID: line` until `quit` or the client's end of data, then closes. */
    private void serveLines(Socket accepted) {
        try (Socket socket = accepted) {
            socket.setTcpNoDelay(true);
            // Latin-1 both ways gives back every byte as it came
            BufferedReader in =
                new BufferedReader(new InputStreamReader(socket.getInputStream(), StandardCharsets.ISO_8859_1));
            OutputStream out = socket.getOutputStream();
            for (String line; (line = in.readLine()) != null && !line.equals("quit"); ) {
                waitTurn(false);
                out.write((name + " " + pid + ": " + line + "\n").getBytes(StandardCharsets.ISO_8859_1));
            }
        } catch (IOException error) {
            // the client has gone
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
        }
    }

    private static void startDaemon(String name, Runnable work) {
        Thread thread = new Thread(work, name);
        thread.setDaemon(true);
        thread.start();
    }

    // ---------------------------------------------------------------- start

    private static RuntimeException fail(int status, String message) {
        System.err.println(message);
        System.exit(status);
        return new IllegalStateException(message);
    }

    private static Map<String, String> options(String[] args) {
        Map<String, String> options =
            new HashMap<>(Map.of("--port", "8001", "--line-port", "8101", "--host", "127.0.0.1", "--name", "app"));
        for (int i = 0; i < args.length; i += 2) {
            if (!options.containsKey(args[i]) || i + 1 == args.length) {
                throw fail(2, "usage: App [--port N] [--line-port N] [--host ADDRESS] [--name NAME]");
            }
            options.put(args[i], args[i + 1]);
        }
        return options;
    }

    private static InetSocketAddress address(Map<String, String> options, String key) throws IOException {
        String text = options.get(key);
        if (!text.matches("[0-9]{1,5}") || Integer.parseInt(text) > 65535) {
            throw fail(2, key + ": " + text + " is not a port (0 to 65535)");
        }
        return new InetSocketAddress(InetAddress.getByName(options.get("--host")), Integer.parseInt(text));
    }

    private static RuntimeException cannotListen(String host, InetSocketAddress address, IOException error) {
        String reason = String.valueOf(error.getMessage()).toLowerCase();
        return fail(1, "cannot listen on " + host + ":" + address.getPort() + ": " + reason);
    }

    /** Listens on both ports, says `ready` on stdout, and serves until a signal ends the process. */
    public static void main(String[] args) throws IOException {
        Map<String, String> options = options(args);
        String host = options.get("--host");
        InetSocketAddress httpAddress = address(options, "--port");
        InetSocketAddress lineAddress = address(options, "--line-port");
        // without the first an answer waits 40 ms for the client's ACK; without the others idle clients are cut off
        System.setProperty("sun.net.httpserver.nodelay", "true");
        System.setProperty("sun.net.httpserver.maxIdleConnections", "100000");
        System.setProperty("sun.net.httpserver.idleInterval", "3600");
        HttpServer http;
        try {
            http = HttpServer.create(httpAddress, 1024);
        } catch (IOException error) {
            throw cannotListen(host, httpAddress, error);
        }
        ServerSocket lines = new ServerSocket();
        try {
            lines.bind(lineAddress, 1024);
        } catch (IOException error) {
            throw cannotListen(host, lineAddress, error);
        }
        App app = new App(options.get("--name"));
        http.createContext("/", app::respond);
        http.setExecutor(Executors.newCachedThreadPool());
        http.start();
        new Thread(() -> app.acceptLines(lines), "line-accept").start();
        System.out.println("ready name=" + app.name + " pid=" + app.pid + " http=" + host + ":"
            + http.getAddress().getPort() + " line=" + host + ":" + lines.getLocalPort());
    }
}
